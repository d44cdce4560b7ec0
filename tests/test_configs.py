"""The base configs: each says its own part once, and the rest is inherited."""

import runpy
from pathlib import Path

import pytest
from mmengine.config import Config

CONFIGS = Path(__file__).parents[1] / 'configs'
METHODS = sorted((CONFIGS / '_base_' / 'methods').glob('*.py'))
RECIPES = sorted(path for path in CONFIGS.glob('*/*.py') if path.parent.name != '_base_')
EQUAL = CONFIGS / '_base_' / 'methods' / 'ew.py'


@pytest.mark.parametrize('path', [path for path in METHODS if path != EQUAL], ids=lambda path: path.stem)
def test_a_method_states_what_differs_from_equal_weighting(path: Path) -> None:
    equal = Config.fromfile(EQUAL).optim_wrapper.to_dict()
    stated = runpy.run_path(str(path)).get('optim_wrapper', {})
    for key, value in stated.items():
        assert key not in equal or value != equal[key], f'{path.name} repeats {key} of ew.py'
    resolved = Config.fromfile(path).optim_wrapper.to_dict()
    for value in stated.values():
        if isinstance(value, dict):
            value.pop('_delete_', None)
    # Nothing of the inherited parts stays inside one that is stated.
    assert resolved == equal | stated
    assert list(resolved)[: len(equal)] == list(equal)


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
def test_a_recipe_takes_its_optimizer_from_its_schedule(path: Path) -> None:
    cfg = Config.fromfile(path)
    schedules = [file for file in cfg.text.splitlines() if '/_base_/schedules/' in file and file.endswith('.py')]
    assert len(schedules) == 1, 'one schedule file'
    adam = Config.fromfile(schedules[0])._optimizer.to_dict()
    assert adam == dict(type='Adam', lr=1e-4, weight_decay=1e-5), 'the optimizer of the paper'
    optimizer = cfg.optim_wrapper.optimizer.to_dict()
    assert optimizer | dict(lr=adam['lr']) == adam


SMALL = {
    'nyuv2_96x128': ('nyuv2_288x384', (96, 128), 'bilinear', 8),
    'cityscapes_64x128': ('cityscapes_128x256', (64, 128), 'area', 16),
}


@pytest.mark.parametrize('name', SMALL)
def test_the_small_data_set_is_the_large_one_with_other_pipelines(name: str) -> None:
    large_name, size, interpolation, batch_size = SMALL[name]
    small, large = (Config.fromfile(CONFIGS / '_base_' / 'datasets' / f'{n}.py') for n in (name, large_name))
    for split in ('train', 'val', 'test'):
        loader, reference = (cfg[f'{split}_dataloader'].to_dict() for cfg in (small, large))
        pipeline = loader['dataset'].pop('pipeline')
        reference['dataset'].pop('pipeline')
        types = [step['type'] for step in pipeline]
        augmentation = ['RandomZoom', 'RandomFlip'] if split == 'train' else []
        assert types == ['ResizeMultiTask', *augmentation, 'PackMultiTaskInputs']
        assert tuple(pipeline[0]['size']) == size
        assert pipeline[0].get('interpolation', 'bilinear') == interpolation
        assert loader.pop('batch_size') == batch_size
        assert loader | dict(num_workers=0) == {k: v for k, v in reference.items() if k != 'batch_size'} | dict(
            num_workers=0
        )
    assert small.test_evaluator == large.test_evaluator == small.val_evaluator


def test_office_home_shares_all_but_its_domains_with_office_31() -> None:
    home, office = (Config.fromfile(CONFIGS / '_base_/datasets' / f'{n}_224.py') for n in ('office_home', 'office31'))
    domains = ['Art', 'Clipart', 'Product', 'Real_World']
    for split in ('train', 'val', 'test'):
        loader, reference = (cfg[f'{split}_dataloader'].to_dict() for cfg in (home, office))
        expected = {d: dict(type='OfficeHomeDataset', domain=d, split=split, split_dir='splits') for d in domains}
        datasets = loader['dataset'].pop('datasets')
        assert datasets == expected and list(datasets) == domains
        assert list(reference['dataset'].pop('datasets')) == ['amazon', 'dslr', 'webcam']
        assert loader == reference
    assert [metric.task for metric in home.test_evaluator] == [metric.task for metric in home.val_evaluator] == domains
