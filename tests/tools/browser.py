"""A headless Chromium, driven over the DevTools protocol: no driver whose version would have to match."""

import base64
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import websocket

NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')
FLAGS = (
    '--headless',
    '--no-sandbox',  # containers run as root
    '--disable-gpu',
    '--disable-quic',
    '--disable-dev-shm-usage',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
    '--no-first-run',
    '--no-proxy-server',
    '--window-size=1400,1500',
    '--remote-debugging-port=0',
)


def find_browser() -> str | None:
    """The program, or None where there is none."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


def wait_until(check: Callable[[], Any], what: str, seconds: float = 120) -> Any:
    """Polls until ``check`` returns something true, and returns it.

    Raises:
        AssertionError: It did not within this time; says what.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = check()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f'waited {seconds:g} s for {what}')


def stop(process: subprocess.Popen) -> None:
    """Kills a process that leads its own session, with its children, if it still runs."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Browser:
    """One page in a browser of its own; a context manager that ends it.

    Attributes:
        requested: The addresses of all requests of the page, as the network log has them.
        complaints: What the page's console and its exceptions say.

    Args:
        profile: An empty folder.
    """

    def __init__(self, profile: Path) -> None:
        self.requested: list[str] = []
        self.complaints: list[str] = []
        self._number = 0
        with open(profile.with_suffix('.log'), 'w') as log:
            self._process = subprocess.Popen(
                [find_browser(), *FLAGS, f'--user-data-dir={profile}', 'about:blank'],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            port_file = profile / 'DevToolsActivePort'
            text = wait_until(lambda: port_file.is_file() and port_file.read_text(), 'the browser')
            address = self._page(int(text.split()[0]))
            self._socket = websocket.create_connection(address, timeout=60, suppress_origin=True)
            for domain in ('Page', 'Network', 'Runtime', 'Log', 'DOM'):
                self.command(f'{domain}.enable')
        except BaseException:
            stop(self._process)
            raise

    def __enter__(self) -> 'Browser':
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        stop(self._process)

    @staticmethod
    def _page(port: int) -> str:
        def pages() -> list[str]:
            with urllib.request.urlopen(f'http://127.0.0.1:{port}/json/list', timeout=30) as reply:
                return [page['webSocketDebuggerUrl'] for page in json.load(reply) if page['type'] == 'page']

        return wait_until(pages, 'a page of the browser')[0]

    def command(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command of the DevTools protocol; events that come before it are noted."""
        self._number += 1
        self._socket.send(json.dumps(dict(id=self._number, method=method, params=params)))
        while True:
            message = json.loads(self._socket.recv())
            if message.get('id') == self._number:
                assert 'error' not in message, f'{method}: {message["error"]}'
                return message['result']
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        params = message.get('params', {})
        if message['method'] == 'Network.requestWillBeSent':
            self.requested.append(params['request']['url'])
        elif message['method'] == 'Runtime.exceptionThrown':
            self.complaints.append(str(params['exceptionDetails']))
        elif message['method'] == 'Log.entryAdded' and params['entry']['level'] == 'error':
            self.complaints.append(f'{params["entry"]["text"]} ({params["entry"].get("url")})')

    def open(self, url: str) -> None:
        """Goes to a page; does not wait for what its scripts make."""
        self.command('Page.navigate', url=url)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited if it is a promise."""
        found = self.command('Runtime.evaluate', expression=expression, returnByValue=True, awaitPromise=True)
        assert 'exceptionDetails' not in found, found['exceptionDetails']
        return found['result'].get('value')

    def wait_for(self, expression: str, seconds: float = 120) -> Any:
        """Polls a JavaScript expression until it is true, and returns its value."""
        return wait_until(lambda: self.evaluate(expression), expression, seconds)

    def choose_file(self, selector: str, path: Path) -> None:
        """Puts a file into an <input type=file>, as its dialogue would."""
        root = self.command('DOM.getDocument')['root']['nodeId']
        node = self.command('DOM.querySelector', nodeId=root, selector=selector)['nodeId']
        self.command('DOM.setFileInputFiles', nodeId=node, files=[str(path)])

    def drop_file(self, selector: str, path: Path) -> bool:
        """Drags a file from outside onto the middle of an element and lets it go; whether that reached the element.

        On a busy machine a browser without a screen does not always deliver such made-up events to the page.
        """
        box = self.evaluate(
            f'(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView(); '
            'window.dropped = false; e.addEventListener("drop", () => { window.dropped = true }, true); '
            'const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2] })()'
        )
        data = dict(items=[], files=[str(path)], dragOperationsMask=1)
        for kind in ('dragEnter', 'dragOver', 'drop'):
            self.command('Input.dispatchDragEvent', type=kind, x=box[0], y=box[1], data=data)
        try:
            return self.wait_for('window.dropped', seconds=10)
        except AssertionError:
            return False

    def screenshot(self, path: Path) -> None:
        """Writes the whole page as PNG."""
        shot = self.command('Page.captureScreenshot', captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot['data']))
