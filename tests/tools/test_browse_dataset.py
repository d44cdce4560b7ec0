import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from mmrepmtl.datasets import EpochIndex
from mmrepmtl.inspection import browse as browse_module
from mmrepmtl.inspection.browse import browse_dataset
from mmrepmtl.registry import DATASETS
from mmrepmtl.structures import MultiTaskDataSample
from mmrepmtl.visualization import colour_binary, colour_segmentation, default_palette
from mmrepmtl.visualization.panels import fit, text_panel, unlabelled_panel
from mmrepmtl.visualization.target_grid import target_grid
from tests.tools.own_config import make_config

ROOT = Path(__file__).resolve().parents[2]
# The drawings below have panels of 160 x 128, the first at (14, 14 + 44 + 20), 6 pixels apart, 20 for a scale.
WIDTH, HEIGHT, LEFT, TOP, GAP = 160, 128, 14, 78, 6


@pytest.fixture
def config(tmp_path):
    return make_config(tmp_path / 'data')


@pytest.fixture
def drawn(monkeypatch):
    """The arguments of the drawing function."""
    calls = []
    monkeypatch.setattr(browse_module, 'target_grid', lambda *a: calls.append(a) or target_grid(*a))
    return calls


def panel(sheet, row, column, scale=20):
    top = TOP + row * (HEIGHT + 20 + 8 + scale)
    left = LEFT + column * (WIDTH + GAP)
    return sheet[top : top + HEIGHT, left : left + WIDTH]


def test_the_sheet_shows_what_the_network_is_fed(config, tmp_path, drawn):
    config['model']['data_preprocessor'] |= dict(mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3))
    out = tmp_path / 'sheets/train.png'
    assert browse_dataset(Config(config), out, num=3, seed=4, epoch=2) == [0, 2, 4]
    ((images, samples, declared, captions, names),) = drawn
    dataset = DATASETS.build(config['train_dataloader']['dataset'])
    for row, index in enumerate((0, 2, 4)):
        item = dataset[EpochIndex(index, 2, 4)]
        torch.testing.assert_close(images[row], item['inputs'], atol=1e-6, rtol=0)
        for name, value in item['data_samples'].targets.items():
            assert torch.equal(samples[row].targets[name], value)
    assert list(declared) == ['semseg', 'edge', 'depth', 'normal', 'scene', 'pose']
    assert captions['edge'] == 'edge (edges)' and captions['depth'] == 'depth'
    assert names == ['0:  images/a/1.png', '2:  images/a/3.png', '4:  images/b/2.png']
    sheet = cv2.imread(str(out))[..., ::-1]
    picture = np.rint(255 * images[1].permute(1, 2, 0).numpy()).astype(np.uint8)
    np.testing.assert_array_equal(panel(sheet, 1, 0), fit(picture, (HEIGHT, WIDTH), smooth=True))
    labels = colour_segmentation(samples[1].targets['semseg'].numpy(), default_palette(3))
    np.testing.assert_array_equal(panel(sheet, 1, 1), fit(labels, (HEIGHT, WIDTH)))
    edges = colour_binary(samples[1].targets['edge'].numpy())
    np.testing.assert_array_equal(panel(sheet, 1, 2), fit(edges, (HEIGHT, WIDTH)))


def test_image_and_targets_are_augmented_together(tmp_path, drawn):
    """In the data the image's red says the class and the depth; on the sheet it still does."""
    config = make_config(tmp_path)
    rng = np.random.default_rng(0)
    for path in (tmp_path / 'images').rglob('*.png'):
        name = path.relative_to(tmp_path / 'images')
        label = cv2.resize(rng.integers(0, 2, (4, 5), dtype=np.uint8), (20, 16), interpolation=cv2.INTER_NEAREST)
        image = np.stack([0 * label, 0 * label, 80 * label], axis=-1)
        cv2.imwrite(str(path), image)
        cv2.imwrite(str(tmp_path / 'masks' / name), label)
        cv2.imwrite(str(tmp_path / 'depth' / name), (1000 + 1000 * label.astype(np.uint16)))
    browse_dataset(Config(config), tmp_path / 'a.png', num=5)
    ((images, samples, *_),) = drawn
    for image, sample in zip(images, samples, strict=True):
        label, depth = sample.targets['semseg'], sample.targets['depth'][0]
        red = image[0] * 255 / 80
        # The image is bilinear, the labels take the nearest pixel: they agree where no two colours mix.
        flat = (red - red.round()).abs() < 1e-3
        assert flat.float().mean() > 0.5
        assert torch.equal(red.round()[flat].long(), label[flat])
        torch.testing.assert_close(depth * 1.5, label + 1.0)


def test_epochs_and_seeds_differ_in_training_only(config, tmp_path, drawn):
    for epoch, seed in ((0, 0), (1, 0), (0, 1), (0, None)):
        browse_dataset(Config(config), tmp_path / 'a.png', num=5, epoch=epoch, seed=seed)
    first, other_epoch, other_seed, default = (call[0] for call in drawn)
    assert not torch.equal(first, other_epoch) and not torch.equal(first, other_seed) and torch.equal(first, default)
    drawn.clear()
    for epoch in (0, 1):
        browse_dataset(Config(config), tmp_path / 'a.png', split='val', epoch=epoch)
    assert len(drawn[0][0]) == 2 and torch.equal(drawn[0][0], drawn[1][0])


def test_padding_to_the_batch_is_shown(config, tmp_path, drawn):
    config['model']['data_preprocessor'] |= dict(size_divisor=32)
    browse_dataset(Config(config), tmp_path / 'a.png', num=1)
    ((images, samples, *_),) = drawn
    assert images.shape[-2:] == (32, 32) and (samples[0].targets['semseg'][16:] == 255).all()
    assert cv2.imread(str(tmp_path / 'a.png')).shape[1] == 2 * 14 + 7 * (160 + 6) - 6


def test_text_and_missing_targets(tmp_path):
    declared = dict(
        scene=dict(kind='classification', classes=('office', 'kitchen')),
        pose=dict(kind='regression', names=('x', 'y')),
        depth=dict(kind='depth'),
    )
    full, empty = (MultiTaskDataSample(metainfo=dict(img_path='1.png')) for _ in range(2))
    full.set_target('scene', torch.tensor(1))
    full.set_target('pose', torch.tensor([1.5, float('nan')]))
    full.set_target('depth', torch.full((1, 16, 20), 2.0))
    sheet = target_grid(torch.zeros(2, 3, 16, 20), [full, empty], declared)
    size = (HEIGHT, WIDTH)
    np.testing.assert_array_equal(panel(sheet, 0, 1), text_panel(['kitchen'], size))
    np.testing.assert_array_equal(panel(sheet, 0, 2), text_panel(['x  1.5', 'y  unlabelled'], size))
    assert (panel(sheet, 0, 3) == panel(sheet, 0, 3)[0, 0]).all()
    for column in (1, 2, 3):
        np.testing.assert_array_equal(panel(sheet, 1, column), unlabelled_panel(size))


def test_wrong_arguments_are_named(config, tmp_path):
    with pytest.raises(ValueError, match='num=0 must be at least 1'):
        browse_dataset(Config(config), tmp_path / 'a.png', num=0)
    config.pop('test_dataloader')
    with pytest.raises(ValueError, match='the config has no test_dataloader'):
        browse_dataset(Config(config), tmp_path / 'a.png', split='test')
    with pytest.raises(ValueError, match='give one sample per image'):
        target_grid([], [], {})


@pytest.mark.slow
def test_the_command(config, tmp_path):
    file, out = tmp_path / 'own.py', tmp_path / 'sheet.png'
    file.write_text('\n'.join(f'{key} = {value!r}' for key, value in config.items()))
    command = [sys.executable, ROOT / 'tools/misc/browse_dataset.py', file, '--num', '2', '--out', out, '--seed', '3']
    environment = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment)
    assert result.returncode == 0 and result.stdout == f'{out}: samples 0, 4 of train\n', result.stderr
    assert cv2.imread(str(out)).std() > 20
