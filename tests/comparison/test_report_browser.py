"""The report in a real browser, from the disk: nothing is fetched, nothing complains, tables sort, boxes hide."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmrepmtl.comparison.report import write_reports
from mmrepmtl.comparison.summary import summarize
from tests.comparison.folder import make_folder
from tests.comparison.numbers import make_rows
from tests.tools.browser import Browser, find_browser

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_browser() is None, reason='there is no Chromium on this machine'),
]


@pytest.fixture(scope='module')
def browser(tmp_path_factory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp('browser') / 'profile') as found:
        yield found


@pytest.fixture(scope='module')
def whole(tmp_path_factory) -> tuple[Path, list]:
    folder = tmp_path_factory.mktemp('whole')
    rows = make_folder(folder)
    write_reports(folder, rows)
    return folder / 'report.html', rows


def open_page(browser: Browser, path: Path) -> None:
    browser.requested.clear()
    browser.complaints.clear()
    browser.open(path.as_uri())
    browser.wait_for(f'document.readyState === "complete" && location.href === {json.dumps(path.as_uri())}')


def labels(browser: Browser) -> list[str]:
    return browser.evaluate('[...document.querySelectorAll("#table tbody tr")].map(row => row.cells[0].textContent)')


def click(browser: Browser, heading: str) -> str:
    """Clicks a heading of the table; returns how it is sorted then."""
    return browser.evaluate(
        '(() => { const head = [...document.querySelectorAll("#table th[data-column]")].find('
        f'h => h.textContent === {json.dumps(heading)}); head.querySelector("button").click(); '
        'return head.getAttribute("aria-sort") })()'
    )


def test_the_page_is_whole_without_a_network(browser, whole, tmp_path):
    path, _ = whole
    open_page(browser, path)
    images = browser.evaluate('[...document.images].map(i => [i.complete, i.naturalWidth])')
    assert len(images) == 4 * (1 + 3 + 3 * 4) and all(done and width > 0 for done, width in images)
    sizes = browser.evaluate(
        '[...document.querySelectorAll("section > svg")].map(s => [s.getBoundingClientRect().width, '
        's.querySelectorAll("path").length])'
    )
    assert len(sizes) == 8 and all(width > 200 and paths > 5 for width, paths in sizes)
    # No figure or table makes the page itself scroll sideways.
    assert browser.evaluate('document.documentElement.scrollWidth <= window.innerWidth')
    assert [url for url in browser.requested if not url.startswith('data:')] == [path.as_uri()]
    assert browser.complaints == []


def test_a_click_sorts_the_table_and_another_turns_it(browser, whole):
    path, rows = whole
    open_page(browser, path)
    summary = summarize(rows)
    means = {label: own.metrics['semseg/mIoU'].mean for label, own in summary.methods.items()}
    assert labels(browser) == list(summary.methods)
    assert click(browser, 'mIoU ↑') == 'descending' and labels(browser) == sorted(means, key=means.get, reverse=True)
    assert click(browser, 'mIoU ↑') == 'ascending' and labels(browser) == sorted(means, key=means.get)
    errors = {label: own.metrics['depth/abs_err'].mean for label, own in summary.methods.items()}
    assert click(browser, 'abs_err ↓') == 'ascending' and labels(browser) == sorted(errors, key=errors.get)
    # The constants have no Delta p: last, whichever way.
    for _ in range(2):
        click(browser, 'Delta p, tasks ↑')
        assert labels(browser)[-1] == 'constant'
    assert click(browser, 'method') == 'ascending' and labels(browser) == sorted(means)
    assert browser.complaints == []


def test_a_box_hides_a_method_in_the_figures(browser, whole):
    path, rows = whole
    open_page(browser, path)
    number = list(summarize(rows).methods).index('rep-mtl')
    shown = f'[...document.querySelectorAll(".m{number}")].filter(e => e.style.display !== "none").length'
    before = browser.evaluate(shown)
    assert before > 10
    toggle = f'document.querySelector(".methods input[value=\\"{number}\\"]").click()'
    browser.evaluate(toggle)
    assert browser.evaluate(shown) == 0
    browser.evaluate(toggle)
    assert browser.evaluate(shown) == before


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_text_and_figures_are_readable_in_light_and_dark(browser, whole, scheme):
    browser.command('Emulation.setEmulatedMedia', features=[dict(name='prefers-color-scheme', value=scheme)])
    open_page(browser, whole[0])

    def luminance(expression: str) -> float:
        red, green, blue = browser.evaluate(f'({expression}).match(/[\\d.]+/g).slice(0, 3).map(Number)')
        return (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255

    paper = luminance('getComputedStyle(document.body).backgroundColor')
    ink = luminance('getComputedStyle(document.querySelector("section svg text")).fill')
    assert paper > 0.9 and ink < 0.2 if scheme == 'light' else paper < 0.2 and ink > 0.8
    browser.command('Emulation.setEmulatedMedia', features=[])


def test_hostile_labels_run_nothing(browser, tmp_path):
    bad = '<img src=x onerror="window.hit = 1"><script>window.hit = 2</script>'
    write_reports(tmp_path, make_rows({'stl': 0, 'ew': 0, bad: 1}), pictures=False)
    open_page(browser, tmp_path / 'report.html')
    assert browser.evaluate('typeof window.hit') == 'undefined' and bad in labels(browser)
    assert click(browser, 'method') == 'ascending'
    assert browser.complaints == []
