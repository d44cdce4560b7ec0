"""Pictures of extreme shapes and texts of any kind are drawn in bounded space."""

import numpy as np
import pytest
import torch
from PIL import Image

from mmrepmtl.analysis.saliency_maps import saliency_maps
from mmrepmtl.analysis.saliency_sheet import saliency_sheet
from mmrepmtl.demo.prediction_panels import panel_size as demo_panel_size
from mmrepmtl.structures import MultiTaskDataSample
from mmrepmtl.visualization import task_sheet
from mmrepmtl.visualization.draw import MAX_HEIGHT, panel_size, panel_width, prediction_grid
from mmrepmtl.visualization.panels import font, shorten
from mmrepmtl.visualization.sheet import _wrap
from mmrepmtl.visualization.target_grid import target_grid
from tests.analysis.harness import SETTINGS, batch, toy

SHAPES = [(3000, 1), (1, 3000), (1, 1), (4000, 2), (2, 4000)]
TARGETS = dict(
    semseg=dict(kind='segmentation', classes=('a\nb', 'tab\there', 'x' * 3000)),
    depth=dict(kind='depth'),
    scene=dict(kind='classification', classes=('a\nb', 'c')),
)
HEADS = {name: name for name in TARGETS}


def sample_of(height: int, width: int) -> MultiTaskDataSample:
    sample = MultiTaskDataSample(metainfo=dict(img_shape=(height, width), img_path='a\nb/' + 'x' * 5000))
    values = dict(
        semseg=torch.randint(0, 3, (height, width)), depth=torch.rand(1, height, width), scene=torch.tensor(1)
    )
    for name, value in values.items():
        sample.set_target(name, value)
        sample.set_prediction(name, torch.tensor([0.5, 0.5]) if name == 'scene' else value)
    return sample


@pytest.mark.parametrize('shape', SHAPES)
def test_every_sheet_is_bounded(shape):
    sample, image = sample_of(*shape), torch.rand(3, *shape)
    title = 'new\nline \x1b[31m \udcff ' + 'y' * 4000
    sheets = [
        task_sheet((255 * image.numpy().transpose(1, 2, 0)).astype(np.uint8), sample, TARGETS, HEADS, title=title),
        task_sheet(image, sample, TARGETS, HEADS, title=title, draw_gt=False),
        prediction_grid([image], [sample], TARGETS, HEADS),
        target_grid([image], [sample], TARGETS),
    ]
    for sheet in sheets:
        # Up to a row for each task, beside what the legend of a long name takes.
        assert sheet.shape[0] < (MAX_HEIGHT + 200) * (len(TARGETS) + 1) and sheet.shape[1] < 4000


def test_panels_keep_their_shape_up_to_the_highest():
    for height, width in [(24, 32), (300, 400), (1600, 400), (480, 640)]:
        drawn = panel_size(np.zeros((height, width, 3), np.uint8), panel_width(width))
        assert drawn[0] / drawn[1] == pytest.approx(height / width, rel=0.01)
    assert panel_size(np.zeros((3000, 1, 3), np.uint8), panel_width(1)) == (MAX_HEIGHT, 160)


def test_panels_of_the_demo_are_bounded():
    assert demo_panel_size(60, 90) == (300, 450)
    assert demo_panel_size(1024, 1) == (4096, 384) and demo_panel_size(1, 1024) == (1, 1024)


def test_a_saliency_sheet_is_bounded():
    images, samples = batch()
    maps = saliency_maps(toy(), images, samples, SETTINGS)[0]._replace(input_size=(3000, 1))
    pictures = [np.zeros((3000, 1, 3), np.uint8)] * len(images)
    with Image.fromarray(saliency_sheet(pictures, [('a\nb', '')] * len(images), dict(A=maps))) as sheet:
        assert sheet.height < (MAX_HEIGHT + 100) * len(images) + 1000


@pytest.mark.parametrize('text', ['', 'short', 'x' * 5000, 'é漢 ' * 300, 'a\nb' * 100])
@pytest.mark.parametrize('width', [0, 5, 60, 400])
def test_shortened_texts_are_as_long_as_fits(text, width):
    short = shorten(text, width, 13)
    assert '\n' not in short
    whole = text.replace('\n', '\\n')
    if short == whole:
        assert font(13).getlength(whole) <= width
        return
    assert short[-1] == '…' and whole.startswith(short[:-1])
    # One by one from the front, as slowly as can be.
    kept = 0
    while kept < len(whole) and font(13).getlength(f'{whole[: kept + 1]}…') <= width:
        kept += 1
    assert len(short) - 1 == kept


@pytest.mark.parametrize('width', [40, 100, 160, 400])
def test_the_words_of_a_legend_stay_below_their_panel(width):
    text = 'white yes, black no, grey probability'
    lines = _wrap(text, width)
    assert ' '.join(lines) == text
    assert all(font(13).getlength(line) <= width or ' ' not in line for line in lines)
