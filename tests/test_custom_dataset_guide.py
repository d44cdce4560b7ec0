"""The code that docs/custom_dataset.md shows, run on small data in the layouts that it shows."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmrepmtl.apis import load_config
from mmrepmtl.datasets import EpochIndex
from mmrepmtl.inspection.dataset_check import check_dataset
from mmrepmtl.registry import DATASETS, METRICS, MODELS

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / 'docs/custom_dataset.md').read_text()
BLOCKS = re.findall(r'```python\n(.*?)```', TEXT, re.S)
SIZE = (48, 64)


@pytest.fixture(autouse=True)
def default_scope():
    with DefaultScope.overwrite_default_scope('mmrepmtl'):
        yield


def write_picture(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array)


def make_rooms(root: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (('train', 9), ('val', 3)):
        names = [f'{room}/{split}{i}' for i, room in zip(range(count), ['kitchen', 'office'] * count, strict=False)]
        (root / f'{split}.txt').write_text('\n'.join(names))
        for number, name in enumerate(names):
            write_picture(root / f'images/{name}.jpg', rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8))
            write_picture(root / f'masks/{name}.png', rng.choice(np.array([0, 1, 2, 255], np.uint8), SIZE))
            if number != 1:
                write_picture(root / f'depth/{name}.png', rng.integers(0, 4000, SIZE).astype(np.uint16))
            path = root / f'light/{name}.txt'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f'{number} 0.5')


def test_the_folder_config_trains_and_evaluates(tmp_path, capsys):
    (tmp_path / 'rooms').mkdir()
    make_rooms(tmp_path / 'rooms')
    file = tmp_path / 'config.py'
    file.write_text(
        BLOCKS[0].replace("'_base_/", f"'{ROOT}/configs/_base_/").replace('data/rooms', f'{tmp_path}/rooms')
    )
    cfg = load_config(file)
    assert check_dataset(cfg) == []
    assert 'depth (depth): 8 of 9 samples labelled' in capsys.readouterr().out
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    assert model.tasks == ('semseg', 'depth', 'room', 'light')
    train, val = (DATASETS.build(cfg[f'{split}_dataloader'].dataset) for split in ('train', 'val'))
    items = [train[EpochIndex(i, 0, 0)] for i in range(4)]
    batch = model.data_preprocessor({key: [item[key] for item in items] for key in items[0]}, training=True)
    losses = model(**batch, mode='loss')
    values = [value for name, value in losses.items() if 'loss' in name]
    assert len(values) == 4 and all(value.isfinite() and value > 0 for value in values)
    sum(values).backward()
    items = [val[i] for i in range(3)]
    with torch.no_grad():
        samples = model.eval().test_step({key: [item[key] for item in items] for key in items[0]})
    for metric in (METRICS.build(config) for config in cfg.val_evaluator):
        metric.dataset_meta = val.metainfo
        metric.process(None, [sample.to_dict() for sample in samples])
        assert all(np.isfinite(value) for value in metric.evaluate(3).values())


def test_the_table_of_the_guide(tmp_path):
    table = re.search(r'    (image,mask.*?)\n\n', TEXT, re.S).group(1).replace('\n    ', '\n')
    (tmp_path / 'train.csv').write_text(table)
    for name in ('1', '2'):
        write_picture(tmp_path / f'images/{name}.jpg', np.zeros((*SIZE, 3), np.uint8))
    write_picture(tmp_path / 'masks/1.png', np.full(SIZE, 2, np.uint8))
    names: dict = {}
    exec(BLOCKS[1].replace('data/cars', str(tmp_path)), names)
    dataset = DATASETS.build(names['_dataset'])
    first, second = dataset.load(0)['gt'], dataset.load(1)['gt']
    assert (first['parts'] == 2).all() and first['brand'] == 1
    np.testing.assert_array_equal(first['pose'], np.array([0.5, 1.2], np.float32))
    assert second == dict(brand=2)


def test_the_class_of_the_guide(tmp_path):
    organ = np.random.default_rng(0).integers(0, 3, SIZE, dtype=np.uint8)
    np.savez(tmp_path / '1.npz', grey=100 * organ, organ=organ, age=np.array([61]))
    np.savez(tmp_path / '2.npz', grey=100 * organ, organ=organ)
    (tmp_path / 'scans.py').write_text(BLOCKS[2])
    file = tmp_path / 'config.py'
    file.write_text("custom_imports = dict(imports=['scans'])\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        Config.fromfile(file)
    pipeline = [dict(type='RandomFlip'), dict(type='PackMultiTaskInputs')]
    dataset = DATASETS.build(
        dict(type='ScansDataset', data_root=str(tmp_path), pipeline=pipeline, cache_dir=str(tmp_path / 'cache'))
    )
    for _ in range(2):
        first, second = (dataset.load(i)['gt'] for i in range(2))
        np.testing.assert_array_equal(first['organ'], organ)
        assert first['age'].tolist() == [61] and 'age' not in second
    assert len(list((tmp_path / 'cache').rglob('*.sample'))) == 2


def test_the_names_in_the_text_exist():
    for name in set(re.findall(r'`(\w+(?:Head|Metric|Dataset))`', TEXT)):
        assert any(registry.get(name) for registry in (MODELS, METRICS, DATASETS)), name
    for path in set(re.findall(r'(?:tools|mmrepmtl)/[\w/]+\.py', TEXT)):
        assert (ROOT / path).is_file(), path
