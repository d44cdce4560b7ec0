"""The web demo: what its panels show, and the page in a real browser."""

import base64
import importlib.util
import io
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from mmrepmtl.analysis.saliency_maps import SaliencyMaps, SaliencySettings, mirrored_targets, saliency_maps
from mmrepmtl.analysis.saliency_sheet import overlay
from mmrepmtl.apis import MultiTaskInferencer
from mmrepmtl.demo import page as demo_module
from mmrepmtl.demo.page import Demo, read_upload
from mmrepmtl.demo.prediction_panels import saliency_panels
from mmrepmtl.registry import MODELS
from mmrepmtl.visualization import colour_normals, colour_segmentation
from tests.apis.toy import CONFIG, ROOT, TARGETS, picture
from tests.tools.browser import Browser, find_browser, wait_until

TASKS = ('semseg', 'edge', 'depth', 'normal', 'kind', 'pose')
TOOL = ROOT / 'tools/demo.py'

# On Python's start: writes down every host that the process looks up or connects to.
AUDIT = """
import os, sys
def note(event, arguments):
    if event in ('socket.connect', 'socket.getaddrinfo'):
        host = arguments[1][0] if event == 'socket.connect' and isinstance(arguments[1], tuple) else arguments[0]
        if isinstance(host, (str, bytes)):
            with open(os.environ['AUDIT_FILE'], 'a') as file:
                file.write(host if isinstance(host, str) else host.decode())
                file.write('\\n')
sys.addaudithook(note)
"""


@pytest.fixture(scope='module')
def run(tmp_path_factory) -> tuple[Path, Path]:
    """A config and a checkpoint of a random model of all kinds of tasks, to which the picture matters."""
    folder = tmp_path_factory.mktemp('run')
    config = folder / 'tiny.py'
    config.write_text(f"{CONFIG}\noptim_wrapper = dict(type='MultiTaskOptimWrapper', shared='encoder')\n")
    torch.manual_seed(0)
    model = MODELS.build(Config.fromfile(config).model)
    with torch.no_grad():
        for task in ('semseg', 'edge', 'normal', 'depth'):
            model.heads[task].decoder.layers[-1].weight.mul_(20)
        model.heads['depth'].decoder.layers[-1].bias.fill_(30)
    checkpoint = folder / 'weights.pth'
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(targets=TARGETS))), checkpoint)
    return config, checkpoint


@pytest.fixture(scope='module')
def demo(run) -> Demo:
    return Demo(MultiTaskInferencer(*run, device='cpu'))


@pytest.fixture
def room(tmp_path) -> Path:
    path = tmp_path / 'room.png'
    Image.fromarray(picture((60, 90))).save(path)
    return path


# ---- the panels ------------------------------------------------------------------------------------------------------


def test_prediction_panels_are_the_inferencers_predictions_magnified_with_legends(demo, room):
    answer = demo(room, 'my <room>.png')
    (result,) = demo.inferencer(picture((60, 90)))
    large = {task: value.repeat(5, -2).repeat(5, -1) for task, value in result.predictions.items() if value.ndim > 1}
    assert set(answer.predictions) == set(answer.saliency) == set(TASKS)
    panels = answer.predictions
    palette = TARGETS['semseg']['palette']
    assert np.array_equal(panels['semseg'].picture, colour_segmentation(large['semseg'], palette))
    assert np.array_equal(panels['normal'].picture, colour_normals(large['normal']))
    ids, counts = np.unique(result.predictions['semseg'], return_counts=True)
    assert len(ids) > 1
    for index, count in zip(ids, counts, strict=True):
        text = f'{TARGETS["semseg"]["classes"][index]} {100 * count / (60 * 90):.0f} %'
        assert f'background: rgb({", ".join(map(str, palette[index]))})"></i>{text}<' in panels['semseg'].legend
    depth = result.predictions['depth']
    assert f'>{depth.min():.2f} m<' in panels['depth'].legend and f'{depth.max():.2f} m<' in panels['depth'].legend
    assert 'metres' in panels['depth'].legend and depth.min() > 0
    assert answer.note == 'my &lt;room&gt;.png: 90 x 60 pixels' and answer.missing == ''
    assert answer.network_input.legend.count('32 x 24 pixels') == 1


def test_saliency_panels_are_the_saliency_against_the_mirrored_prediction(demo, room):
    answer = demo(room, 'room.png')
    prepared = demo.inferencer.pipeline(picture((60, 90)).astype(np.float32) / 255)
    inputs = [prepared.inputs]
    targets = mirrored_targets(demo.inferencer.model, inputs, demo.inferencer.targets_meta)
    (maps,) = saliency_maps(demo.inferencer.model, inputs, targets, SaliencySettings('encoder'))
    assert set(maps.tasks) == set(TASKS)
    grey = np.full((300, 450, 3), 90, np.uint8)
    for task, magnitude_BHW in zip(maps.tasks, maps.magnitude_TBHW.numpy(), strict=True):
        panel, largest = answer.saliency[task], magnitude_BHW.max()
        assert panel.picture.shape == (300, 450, 3) and f'{largest:.2g}</div>' in panel.legend
        # The opaque square of the largest value lies where it is in Z.
        row, column = np.unravel_index(magnitude_BHW[0].argmax(), magnitude_BHW[0].shape)
        y, x = (
            int((index + 0.5) * side / count)
            for index, side, count in zip((row, column), (300, 450), magnitude_BHW[0].shape, strict=True)
        )
        hottest = overlay(grey, np.where(np.arange(450) == 0, 1.0, 0.0)[None].repeat(300, 0))[0, 0]
        assert np.array_equal(panel.picture[y, x], hottest)
    for task, share in zip(maps.tasks, maps.share_T.tolist(), strict=True):
        assert f'{task} {100 * share:.0f} %' in answer.ownership.legend
    assert f'{maps.entropy:.2f}' in answer.ownership.legend


def test_levels_of_z_are_stacked_and_padding_is_left_out():
    image = picture((40, 60))

    def level(rows: int, columns: int) -> SaliencyMaps:
        magnitude_TBHW = torch.zeros(2, 1, rows, columns, dtype=torch.float64)
        magnitude_TBHW[0, 0, 0, 0] = rows
        owned_TBHW = magnitude_TBHW / rows
        return SaliencyMaps(
            ('a', 'b'),
            magnitude_TBHW,
            owned_TBHW,
            torch.ones(1, 1),
            torch.ones(1, 2),
            0.0,
            torch.tensor([1.0, 0.0]),
            dict(a=1.0, b=1.0),
            (8, 8),
        )

    # The network's input is 8 x 8, of which 4 x 6 are picture.
    panels, ownership = saliency_panels([level(2, 2), level(4, 4)], image, (4, 6))
    first, second = panels['a'].picture[:40], panels['a'].picture[40:]
    assert panels['a'].picture.shape == ownership.picture.shape == (80, 60, 3) and '2 / 4' in panels['a'].legend
    hot = [(part == overlay(image, np.ones((40, 60)))).all(-1) for part in (first, second)]
    assert hot[0][:, :40].all() and not hot[0][:, 40:].any()
    assert hot[1][:20, :20].all() and hot[1].sum() == 400
    owned = ownership.picture.any(-1)  # black is nobody's
    assert np.array_equal(owned, np.concatenate(hot))
    assert 'no saliency' in panels['b'].legend


def test_a_model_without_saliency_maps_still_predicts_and_says_why(demo, room, monkeypatch):
    monkeypatch.setattr(demo.inferencer.model, 'encoder_forward', 'per_task')
    answer = demo(room, 'room.png')
    assert 'each task has samples of its own' in answer.missing
    assert all(panel.picture is None for panel in (answer.ownership, *answer.saliency.values()))
    assert all(panel.picture is not None for panel in answer.predictions.values())


def test_large_pictures_are_shrunk_or_refused_unread(tmp_path, monkeypatch):
    wide = tmp_path / 'wide.jpg'
    Image.fromarray(picture((300, 2048))).save(wide)
    array, original = read_upload(wide, 'wide.jpg')
    assert array.shape == (150, 1024, 3) and original == (300, 2048)
    monkeypatch.setattr(demo_module, 'MAX_PIXELS', 600_000)
    monkeypatch.setattr(demo_module, 'read_picture_image', lambda path: pytest.fail('it was read'))
    with pytest.raises(ValueError, match='wide.jpg: 2048 x 300 pixels'):
        read_upload(wide, 'wide.jpg')


@pytest.mark.parametrize('content', [b'', b'some text\n', b'\x89PNG\r\n\x1a\nrest'])
def test_what_is_no_picture_is_named(tmp_path, content):
    path = tmp_path / 'stored.png'
    path.write_bytes(content)
    with pytest.raises(ValueError, match='^mine.png cannot be read as an image'):
        read_upload(path, 'mine.png')


def test_a_picture_that_was_cut_off_is_named(tmp_path, room):
    path = tmp_path / 'cut.png'
    path.write_bytes(room.read_bytes()[:-200])
    with pytest.raises(ValueError, match='^mine.png cannot be read as an image, or is damaged'):
        read_upload(path, 'mine.png')


def test_without_gradio_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'gradio', None)
    with pytest.raises(ValueError, match='make demo'):
        demo_module._import_gradio()


def test_without_the_quickstarts_model_the_tool_says_how_to_make_it(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location('demo_tool', TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.QUICKSTART == ROOT / 'work_dirs/quickstart'
    monkeypatch.setattr(tool, 'QUICKSTART', tmp_path)
    monkeypatch.setattr(sys, 'argv', ['demo.py'])
    with pytest.raises(SystemExit, match='run `make quickstart`'):
        tool.main()


def test_a_port_that_is_taken_is_named(demo, monkeypatch):
    pytest.importorskip('gradio', reason='gradio is not installed: make install-demo')

    def launch(**arguments) -> None:  # as Gradio's, when it finds no port
        assert (arguments['server_name'], arguments['share']) == ('127.0.0.1', False)
        raise OSError(f'Cannot find empty port in range: {arguments["server_port"]}-{arguments["server_port"]}.')

    monkeypatch.setattr(demo_module, 'build_page', lambda *_: SimpleNamespace(launch=launch))
    for variable in ('NO_PROXY', 'no_proxy', 'GRADIO_TEMP_DIR', 'GRADIO_ANALYTICS_ENABLED'):
        monkeypatch.setenv(variable, '')  # put back afterwards
    with pytest.raises(ValueError, match='port 7861 is taken'):
        demo_module.serve(demo.inferencer, port=7861)


# ---- the page --------------------------------------------------------------------------------------------------------


class Site(NamedTuple):
    """A running server and a browser."""

    url: str
    browser: Browser
    audit: Path


@pytest.fixture(scope='module')
def site(run, tmp_path_factory) -> Iterator[Site]:
    """The tool, started as a user does, and a browser; both are ended."""
    if find_browser() is None:
        pytest.skip('there is no browser: apt-get install chromium (.ci/run does it where it may)')
    if importlib.util.find_spec('gradio') is None:
        pytest.skip('gradio is not installed: make install-demo')
    folder = tmp_path_factory.mktemp('site')
    with serving(run, folder) as url, Browser(folder / 'profile') as browser:
        yield Site(url, browser, folder / 'audit')


@contextmanager
def serving(run: tuple[Path, Path], folder: Path) -> Iterator[str]:
    """The address of the tool, which is ended as `kill` does; then none of its files are left."""
    for name in ('hook', 'tmp', 'profile'):
        (folder / name).mkdir()
    (folder / 'hook/sitecustomize.py').write_text(AUDIT)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    environment = os.environ | dict(
        PYTHONPATH=f'{folder / "hook"}{os.pathsep}{ROOT}',
        AUDIT_FILE=str(folder / 'audit'),
        OMP_NUM_THREADS='1',
        TMPDIR=str(folder / 'tmp'),
        HTTP_PROXY='http://192.0.2.1:9',  # as on many clusters; nobody answers there
    )
    command = [sys.executable, TOOL, run[0], '--checkpoint', run[1], '--port', str(port), '--device', 'cpu']
    log = folder / 'server.log'
    with open(log, 'w') as file:
        server = subprocess.Popen(command, env=environment, cwd=folder, stdout=file, stderr=file)
    try:
        wait_until(lambda: server.poll() is not None or 'The demo is at' in log.read_text(), 'the server', 300)
        assert server.poll() is None, log.read_text()
        yield f'http://127.0.0.1:{port}/'
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0, log.read_text()
        assert not list((folder / 'tmp').glob('mmrepmtl_demo_*'))
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()


def start(site: Site) -> Browser:
    site.browser.open(site.url)
    site.browser.wait_for("document.querySelector('#upload input[type=file]') !== null")
    return site.browser


def shown(browser: Browser, count: int) -> dict[str, dict]:
    """Size, standard deviation over the pixels and source of the panels' pictures, once there are ``count`` of them."""
    pictures = "[...document.querySelectorAll('.panels .image-container img')]"
    browser.wait_for(f'{pictures}.length === {count} && {pictures}.every(i => i.complete && i.naturalWidth > 0)')
    return json.loads(
        browser.evaluate(f"""JSON.stringify(Object.fromEntries({pictures}.map(image => {{
            const canvas = document.createElement('canvas');
            [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
            const context = canvas.getContext('2d');
            context.drawImage(image, 0, 0);
            const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
            const spread = Math.max(...[0, 1, 2].map(channel => {{
                const values = data.filter((_, i) => i % 4 === channel);
                const mean = values.reduce((a, b) => a + b, 0) / values.length;
                return Math.sqrt(values.reduce((a, b) => a + (b - mean) ** 2, 0) / values.length);
            }}));
            const size = [canvas.height, canvas.width];
            return [image.closest('.block').id, {{size, spread, source: canvas.toDataURL()}}];
        }})))""")
    )


def decoded(panel: dict) -> np.ndarray:
    data = base64.b64decode(panel['source'].removeprefix('data:image/png;base64,'))
    return np.asarray(Image.open(io.BytesIO(data)).convert('RGB')).astype(float)


NAMES = {'input', 'ownership', *(f'{row}-{task}' for row in ('prediction', 'saliency') for task in TASKS)}
MESSAGE = "document.querySelector('.toast-wrap')?.innerText"


@pytest.mark.slow
def test_an_uploaded_picture_shows_all_panels_and_asks_nobody_else(site, room, demo):
    browser = start(site)
    browser.choose_file('#upload input[type=file]', room)
    panels = shown(browser, len(NAMES))
    assert set(panels) == NAMES
    for name, panel in panels.items():
        # These two heads average over all positions, which therefore weigh the same.
        assert panel['spread'] > 5 or name in ('saliency-kind', 'saliency-pose'), f'{name} is blank'
        if not name.endswith(('prediction-kind', 'prediction-pose')):
            assert panel['size'] == [300, 450]
    answer = demo(room, 'room.png')
    for task in TASKS:
        for row, expected in (('prediction', answer.predictions[task]), ('saliency', answer.saliency[task])):
            assert np.abs(decoded(panels[f'{row}-{task}']) - expected.picture).mean() < 1, f'{row} of {task}'
    assert 'room.png: 90 x 60 pixels' in browser.evaluate("document.querySelector('#note').innerText")
    assert ' m' in browser.evaluate("document.querySelector('#prediction-depth-legend .bar').innerText")
    assert browser.complaints == []
    outside = [url for url in browser.requested if not url.startswith((site.url, 'data:', 'blob:'))]
    assert outside == [] and len(browser.requested) > 10
    # The server, too, spoke to itself at most.
    assert set(site.audit.read_text().split()) <= {'127.0.0.1', 'localhost', '0.0.0.0', '::'}
    assert '127.0.0.1' in site.audit.read_text()


@pytest.mark.slow
def test_an_example_is_shown_and_removed(site):
    browser = start(site)
    browser.wait_for("document.querySelectorAll('.gallery-item img').length >= 4")
    browser.evaluate("document.querySelector('.gallery-item').click()")
    assert set(shown(browser, len(NAMES))) == NAMES
    browser.evaluate('document.querySelector(\'[aria-label="Remove Image"]\').click()')
    assert shown(browser, 0) == {}


@pytest.mark.slow
def test_a_text_file_that_is_dropped_gets_a_message(site, tmp_path):
    notes = tmp_path / 'notes.txt'
    notes.write_text('not a picture\n')
    for _ in range(3):
        browser = start(site)
        if browser.drop_file('#upload', notes):
            assert 'notes.txt' in browser.wait_for(MESSAGE)
            return
    pytest.skip('the browser did not deliver the drop to the page, three times')


@pytest.mark.slow
def test_a_text_file_named_as_a_picture_gets_a_message(site, tmp_path):
    disguised = tmp_path / 'notes.png'
    disguised.write_text('not a picture\n')
    browser = start(site)
    browser.choose_file('#upload input[type=file]', disguised)
    message = browser.wait_for(MESSAGE)
    assert 'notes.png cannot be read as an image' in message and 'Traceback' not in message
    # The place for the picture is free again.
    browser.wait_for("document.querySelector('#upload img') === null")
    assert shown(browser, 0) == {}


@pytest.mark.slow
def test_files_that_were_not_uploaded_are_not_read(site, room):
    """A made-up request that names a file of the machine; what the page sends is not preprocessed by Gradio."""
    with urllib.request.urlopen(f'{site.url}config', timeout=60) as reply:
        functions = json.load(reply)['dependencies']
    (predict,) = [f['id'] for f in functions if f['queue'] and len(f['outputs']) == 2 + 2 * len(NAMES)]
    upload = dict(path=str(room), orig_name='room.png', meta=dict(_type='gradio.FileData'))
    body = dict(data=[upload], fn_index=predict, session_hash='made-up')
    request = urllib.request.Request(f'{site.url}gradio_api/queue/join', json.dumps(body).encode())
    request.add_header('content-type', 'application/json')
    urllib.request.urlopen(request, timeout=60).close()
    with urllib.request.urlopen(f'{site.url}gradio_api/queue/data?session_hash=made-up', timeout=60) as stream:
        messages = [json.loads(line[5:]) for line in stream.read().decode().splitlines() if line.startswith('data:')]
    (done,) = [message for message in messages if message['msg'] == 'process_completed']
    assert done['success'] is False and 'data' not in done['output']
