"""The report: its curves against hand-made logs, pictures of the models' predictions, what is missing, hostile text."""

import base64
import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmrepmtl.apis.config_file import read_config
from mmrepmtl.apis.loading import load_model
from mmrepmtl.comparison.report import pictures, sections, write_reports
from mmrepmtl.comparison.report.figures import draw_bars, draw_curves, draw_forest
from mmrepmtl.comparison.report.gather import Material
from mmrepmtl.comparison.report.history import Curve, curves, log_folders, read_history, run_folder
from mmrepmtl.comparison.summary import summarize
from mmrepmtl.comparison.tables import PRELIMINARY
from mmrepmtl.registry import DATASETS
from mmrepmtl.visualization import colour_segmentation
from tests.comparison.folder import LABELS, TASKS, make_folder, train_line, write_log
from tests.comparison.numbers import make_row, make_rows

HOSTILE = '<img src=x onerror=alert(1)>"\'&</script><script>alert(2)</script>'


class Page(HTMLParser):
    """The parts of a page: its tags, text by section, pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.sections: dict[str, str] = {'': ''}
        self._section = ''
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == 'section':
            self._section = dict(attrs)['id']
            self.sections[self._section] = ''

    def handle_endtag(self, tag):
        if tag == 'section':
            self._section = ''

    def handle_data(self, data):
        self.sections[self._section] += data


@pytest.fixture(scope='module')
def made(tmp_path_factory) -> tuple[Path, list, str]:
    """A whole comparison, its rows and its page."""
    folder = tmp_path_factory.mktemp('made') / 'my comparison'
    folder.mkdir()
    rows = make_folder(folder)
    files = write_reports(folder, rows)
    assert [file.name for file in files] == ['table.md', 'table.tex', 'report.html']
    return folder, rows, files[2].read_text(encoding='utf-8')


# ---- the logs --------------------------------------------------------------------------------------------------------


def test_curves_are_means_over_seeds_at_common_steps(made):
    folder, _, _ = made
    runs = [read_history(log_folders(run_folder(folder, 'ew', seed), 'ew')) for seed in (0, 1)]
    found = curves({'ew': runs}, 'train')['raw/depth']['ew']
    assert found.steps == list(range(1, 21))
    expected = [sum(train_line('ew', seed, step)['raw/depth'] for seed in (0, 1)) / 2 for step in range(1, 21)]
    assert found.values == pytest.approx(expected)
    val = curves({'ew': runs}, 'val')['semseg/mIoU']['ew']
    assert val == Curve([1, 2], [10.5, 20.5])
    assert not {'lr', 'time', 'data_time', 'step', 'iter', 'epoch'} & set(curves({'ew': runs}, 'train'))


def test_the_baselines_tasks_have_folders_of_their_own(made):
    folder, _, _ = made
    assert [path.name for path in log_folders(run_folder(folder, 'stl', 0), 'stl')] == sorted(TASKS)


# ---- the figures -----------------------------------------------------------------------------------------------------


def test_figures_have_a_class_per_method_and_the_colour_of_the_page():
    summary = summarize(make_rows())
    labels = list(summary.methods)
    forest = draw_forest(summary.differences(), labels)
    line = Curve([1.0, 2.0, 3.0], [1.0, 2.0, 0.5])
    lines = draw_curves({'a $x_1$': {'ew': line, 'uw': line}, 'b': {'uw': line}}, labels, 'iteration', log=True)
    bars = draw_bars({'time': {'ew': 1.0, 'stl': 1500.0}}, labels)
    for svg, shown in ((forest, summary.competitors), (lines, ['ew', 'uw']), (bars, ['ew', 'stl'])):
        page = Page(svg)
        classes = {attrs['class'] for _, attrs in page.tags if attrs.get('class', '').startswith('m')}
        assert classes == {f'm{labels.index(label)}' for label in shown}
        assert 'currentColor' in svg and '#010203' not in svg and '#000000' not in svg and 'fill: #ffffff' not in svg
        assert not re.search(r'href="(?!#)|url\((?!#)|<image|<script', svg)
    assert 'a $x_1$' in lines and 'against ew-log' in forest
    ids = [re.findall(r' id="([^"]+)"', svg) for svg in (forest, lines, bars)]
    assert len(sum(ids, [])) == len(set(sum(ids, [])))


def test_numbers_on_the_axes_are_not_rounded_with_the_coordinates():
    svg = draw_curves({'a': {'ew': Curve([0.0, 1.0], [0.0501, 0.0509])}}, ['ew'], 'iteration')
    texts = re.findall(r'<text[^>]*>([^<]+)</text>', svg)
    assert {'0.0502', '0.0504', '0.0506', '0.0508'} <= set(texts)
    assert max(len(number.partition('.')[2]) for number in re.findall(r' x="([\d.]+)"', svg)) == 2


def test_a_logarithmic_axis_has_ticks_and_needs_a_range():
    narrow, wide = ({'ew': Curve([0.0, 1.0], [1.0, top])} for top in (4.0, 900.0))

    def ticks(found: dict) -> set[str]:
        return set(re.findall(r'<text[^>]*>([^<]+)</text>', draw_curves({'a': found}, ['ew'], 'x', log=True)))

    assert {'1', '10', '100', '200', '500'} <= ticks(wide) and {'1.0', '2.0', '3.0'} <= ticks(narrow)
    assert '2.0' not in ticks({'ew': Curve([0.0, 1.0], [-1.0, 900.0])}) and '1' not in ticks({'ew': Curve([0], [-1.0])})


def test_what_is_not_equal_in_all_runs_is_said_also_where_each_run_has_both():
    rows = make_rows({'stl': 0, 'ew': 1}, seeds=(0,))
    rows = [replace(row, versions='{"torch": "1 and 2", "timm": "1"}') for row in rows]
    text = sections.about(Material('made', summarize(rows), rows))
    assert '<b>Not equal in all runs</b><ul><li>torch</li></ul>' in text and 'torch 1 and 2; timm 1' in text


def path_ends(svg: str, name: str) -> list[tuple[float, float]]:
    """First and last point of each path in the groups of a class."""
    groups = re.findall(rf'<g class="{name}">\s*<path d="([^"]+)"', svg)
    points = [[float(number) for number in re.findall(r'-?[\d.]+', group)] for group in groups]
    return [(numbers[0], numbers[-2]) for numbers in points]


def test_the_forest_draws_the_intervals_at_their_place():
    summary = summarize(make_rows(noise=0.002))
    labels, groups = list(summary.methods), {'stl': summary.differences()['stl']}
    svg = draw_forest(groups, labels)
    spans = {entry.label: path_ends(svg, f'm{labels.index(entry.label)}')[:2] for entry in groups['stl']}
    # Pixels are linear in Delta p: two intervals fix the line that all others lie on.
    pairs = [
        (end, pixel)
        for entry in groups['stl']
        for interval, pixels in zip((entry.interval, entry.plain), spans[entry.label], strict=True)
        for end, pixel in zip(interval, pixels, strict=True)
    ]
    slope, start = np.polyfit([end for end, _ in pairs], [pixel for _, pixel in pairs], 1)
    assert slope > 5 and all(pixel == pytest.approx(start + slope * end, abs=0.05) for end, pixel in pairs)


# ---- the pictures ----------------------------------------------------------------------------------------------------


def decode(uri: str) -> np.ndarray:
    assert uri.startswith('data:image/webp;base64,')
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(',')[2]))).convert('RGB'))


def test_predictions_are_those_of_the_tested_checkpoint_on_spread_samples(made):
    folder, _, _ = made
    run = run_folder(folder, 'ew', 0)
    drawn = pictures.draw_run(run, 'ew')
    assert list(drawn) == ['0', '1', '3', '5']  # of 7
    cfg = read_config(run / 'tiny.py')
    model, _ = load_model(cfg, run / 'epoch_2.pth')
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    for number, sample in drawn.items():
        item = dataset[int(number)]
        with torch.no_grad():
            (result,) = model.test_step(dict(inputs=[item['inputs']], data_samples=[item['data_samples']]))
        palette = dataset.metainfo['targets']['semseg']['palette']
        for kind, labels in (('prediction', result.predictions['semseg']), ('truth', result.targets['semseg'])):
            picture = decode(sample['tasks']['semseg'][kind])
            expected = colour_segmentation(labels.numpy(), palette)
            factor = picture.shape[0] // expected.shape[0]
            assert np.array_equal(picture, expected.repeat(factor, 0).repeat(factor, 1))
        assert set(sample['tasks']) == set(TASKS)


def test_samples_lie_evenly_over_each_domain_and_are_numbered_as_in_its_own_data_set():
    class Domains(list):
        domains = dict(a=range(0, 10), b=range(10, 13), c=range(13, 14))

    assert pictures.choose_samples(Domains(range(14)), 4) == {'a 0': 0, 'a 5': 5, 'b 0': 10, 'b 1': 11, 'c 0': 13}

    class Alone(list):
        domains = dict(b=range(0, 3))

    assert pictures.choose_samples(Alone(range(3)), 2) == {'b 0': 0, 'b 1': 1}
    assert pictures.choose_samples(list(range(100)), 4) == {'0': 0, '25': 25, '50': 50, '75': 75}
    assert pictures.choose_samples([1, 2], 4) == {'0': 0, '1': 1}


def test_classes_and_numbers_are_told_in_words():
    meta = dict(classes=['cup', 'mug', 'pen', 'bag'])
    found = pictures.LINES['classification'](np.array(3), np.array([0.1, 0.4, 0.2, 0.3]), meta)
    assert found == (['bag'], ['0.40 mug', '0.30 bag', '0.20 pen'])
    found = pictures.LINES['regression'](None, np.array([1.5, -20.25]), dict(names=['x', 'y']))
    assert found == (None, ['x 1.5', 'y -20.25'])


def test_the_baseline_has_the_tasks_of_all_its_models(made):
    drawn = pictures.draw_run(run_folder(made[0], 'stl', 0), 'stl')
    assert all(set(sample['tasks']) == set(TASKS) for sample in drawn.values())


def test_a_checkpoint_is_drawn_once_and_a_new_one_anew(made, tmp_path, monkeypatch):
    run = tmp_path / 'seed_0'
    shutil.copytree(run_folder(made[0], 'ew', 0), run)
    save = dict(metrics={}, meta=dict(checkpoint=str(run / 'epoch_2.pth')))
    (run / 'test_metrics.json').write_text(json.dumps(save))
    (run / pictures.CACHE).unlink()
    before = pictures.draw_run(run, 'ew')
    loads = []
    load = pictures.load_model
    monkeypatch.setattr(pictures, 'load_model', lambda *args: loads.append(args) or load(*args))
    assert pictures.draw_run(run, 'ew') == before and not loads
    state = torch.load(run / 'epoch_2.pth')
    state['state_dict']['heads.semseg.decoder.layers.4.bias'] = torch.arange(11.0) * 1000
    torch.save(state, run / 'epoch_2.pth')
    after = pictures.draw_run(run, 'ew')
    assert (
        len(loads) == 1 and after['0']['tasks']['semseg']['prediction'] != before['0']['tasks']['semseg']['prediction']
    )
    (run / pictures.CACHE).write_text('{"key": 3, "sam')
    assert pictures.draw_run(run, 'ew') == after and len(loads) == 2


# ---- the page --------------------------------------------------------------------------------------------------------


def test_a_whole_report_has_every_part(made):
    folder, rows, text = made
    page = Page(text)
    assert len(text) < 5_000_000
    svgs = {
        name: part.count('<svg')
        for name, part in zip(page.sections, re.split(r'<section id="\w+">', text), strict=True)
    }
    assert svgs['differences'] == 1 and svgs['curves'] == 2 and svgs['saliency'] == 2
    assert svgs['conflict'] == 2 and svgs['cost'] == 1
    images = [attrs for tag, attrs in page.tags if tag == 'img']
    # 4 samples: the picture, 3 truths, 3 predictions of 4 methods.
    assert len(images) == 4 * (1 + 3 + 3 * 4)
    assert {f'{label}: {task}' for label in LABELS for task in TASKS} <= {attrs['alt'] for attrs in images}
    assert 'famo: no finished run of all seeds' in page.sections['']
    assert 'Rep-MTL (paper)' not in text and 'the paper has no table for this data set' in page.sections['published']
    assert PRELIMINARY in page.sections['differences']
    for entry in summarize(rows, [*LABELS, 'famo']).differences()['ew-log']:
        assert entry.verdict in page.sections['differences']
    assert 'Not here' not in ''.join(
        page.sections[name] for name in ('curves', 'saliency', 'conflict', 'samples', 'cost')
    )
    assert 'cosine semseg-normal' in text and 'gradient at Z: penalty / tasks' in text


def test_nothing_in_it_is_fetched(made):
    page = Page(made[2])
    for tag, attrs in page.tags:
        assert tag not in ('iframe', 'object', 'embed', 'base')
        for name in ('src', 'href', 'xlink:href', 'action', 'srcset', 'data'):
            value = attrs.get(name) or '#'
            assert value.startswith(('#', 'data:')), (tag, name, value)
    styles = re.findall(r'<style[^>]*>(.*?)</style>', made[2], re.S)
    assert styles and not any('url(' in style or '@import' in style for style in styles)
    policy = next(attrs['content'] for tag, attrs in page.tags if attrs.get('http-equiv') == 'Content-Security-Policy')
    assert policy.startswith("default-src 'none'") and 'http' not in policy


def test_the_results_alone_make_a_report_that_names_what_is_not_there(tmp_path):
    write_reports(tmp_path, make_rows())
    text = (tmp_path / 'report.html').read_text(encoding='utf-8')
    page = Page(text)
    assert 'this report is made of the results alone' in page.sections['curves']
    assert 'no run with Rep-MTL has logged its terms' in page.sections['saliency']
    assert 'no run has measured the gradients' in page.sections['conflict']
    assert 'no run folder, so no model to predict with, of stl, ew, ew-log' in page.sections['samples']
    assert '<svg' in text and 'Rep-MTL (paper)' in page.sections['published']
    assert (
        'The set-ups differ in encoder, output stride, weights, heads, image size, epochs' in page.sections['published']
    )
    table = (tmp_path / 'table.md').read_text(encoding='utf-8')
    assert '| Rep-MTL (paper) | 54.59 | 76.04 | 0.375 |' in table and '| encoder | resnet50 | resnet18 | yes |' in table


def test_a_broken_run_costs_its_pictures_alone(made, tmp_path):
    folder = tmp_path / 'broken'
    shutil.copytree(made[0], folder)
    for file in ('epoch_2.pth', pictures.CACHE, 'test_metrics.json'):
        (run_folder(folder, 'ew', 0) / file).unlink()
    (run_folder(folder, 'ew-log', 0) / '20261127_120000/vis_data/scalars.json').write_text('{"lr"\n')
    write_reports(folder, made[1])
    page = Page((folder / 'report.html').read_text(encoding='utf-8'))
    assert 'ew, seed 0: ' in page.sections['samples'] and 'there is no checkpoint' in page.sections['samples']
    assert 'no log in the run folders of ew-log, seed 0' in page.sections['curves']
    assert 'ew-log, seed 0: 1 unreadable lines in its log' in page.sections['curves']
    alts = {attrs.get('alt') for tag, attrs in page.tags if tag == 'img'}
    assert 'rep-mtl: depth' in alts and 'ew: depth' not in alts


def test_without_pictures_only_those_that_were_drawn_before_are_shown(made, tmp_path):
    folder = tmp_path / 'partly'
    shutil.copytree(made[0], folder)
    (run_folder(folder, 'ew', 0) / pictures.CACHE).unlink()
    write_reports(folder, made[1], pictures=False)
    page = Page((folder / 'report.html').read_text(encoding='utf-8'))
    assert 'not drawn yet, but with the report at the end: ew' in page.sections['samples']
    alts = {attrs.get('alt') for tag, attrs in page.tags if tag == 'img'}
    assert 'rep-mtl: depth' in alts and 'stl: semseg' in alts and 'ew: depth' not in alts
    assert not (run_folder(folder, 'ew', 0) / pictures.CACHE).exists()


def test_hostile_labels_logs_and_metrics_stay_text(tmp_path):
    rows = make_rows({'stl': 0, 'ew': 0, HOSTILE: 1})
    rows += [
        make_row(HOSTILE, seed, f'{HOSTILE}/x', 1.0 + seed, config=HOSTILE, selection=HOSTILE) for seed in (0, 1, 2)
    ]
    rows = [row for row in rows if (row.label, row.seed) != (HOSTILE, 2)]
    (tmp_path / 'comparison.json').write_text(json.dumps(dict(methods=['ew', f'{HOSTILE}2'], seeds=[0])))
    folder = run_folder(tmp_path, 'ew', 0)
    write_log(
        folder, [{'lr': 1, 'step': 1, f'raw/{HOSTILE}': 1.0, 'rep_mtl/tsr': 1.0, f'task_gradients/cos/{HOSTILE}': 0.1}]
    )
    write_reports(tmp_path, rows)
    text = (tmp_path / 'report.html').read_text(encoding='utf-8')
    page = Page(text)
    tags = [tag for tag, _ in page.tags]
    assert tags.count('script') == 1 and 'img' not in tags
    assert not any(name.startswith('on') for _, attrs in page.tags for name in attrs)
    assert HOSTILE in page.sections['table'] and f'{HOSTILE}2: no finished run' in page.sections['']


def test_a_baseline_of_zero_leaves_no_delta_p_and_says_so(tmp_path):
    rows = make_rows({'stl': 0, 'ew': 0, 'rep-mtl': 1}, seeds=(0,))
    rows = [replace(row, value=0.0) if (row.label, row.metric) == ('stl', 'normal/mean') else row for row in rows]
    write_reports(tmp_path, rows)
    page = Page((tmp_path / 'report.html').read_text(encoding='utf-8'))
    assert 'there are not two methods with a Delta p of one seed' in page.sections['differences']
    reason = "rep-mtl: no Delta p for seed 0: delta_p: 'normal/mean' is 0.0 in the baseline: no relative change can be "
    assert f'{reason}taken from a value that is not positive' in page.sections[''] and 'keys=' not in page.sections['']
    (line,) = [line for line in (tmp_path / 'table.md').read_text().splitlines() if line.startswith('| stl |')]
    assert line.endswith('| - | - | - | 1 |')


def test_without_a_row_there_is_no_report_and_a_damaged_plan_is_named(tmp_path):
    with pytest.raises(ValueError, match='there is no result to report; run the comparison first'):
        write_reports(tmp_path, [])
    (tmp_path / 'comparison.json').write_text('{"methods": ')
    with pytest.raises(ValueError, match=r'comparison\.json is damaged .*; remove it'):
        write_reports(tmp_path, make_rows())
    assert not (tmp_path / 'report.html').exists()


def test_values_of_a_sweep_have_a_table_of_their_own(tmp_path):
    rows = make_rows({'stl': 0, 'ew': 0, 'rep-mtl:a=1': 1}, seeds=(0, 1))
    rows += [make_row(f'rep-mtl:a={a}', 0, 'semseg/mIoU', 40.0 + a, split='val') for a in (1, 2)]
    write_reports(tmp_path, rows, pictures=False)
    page = Page((tmp_path / 'report.html').read_text(encoding='utf-8'))
    assert 'rep-mtl:a=2' in page.sections['chosen'] and 'rep-mtl:a=2' not in page.sections['table']
