"""docs/datasets.md: what it names is there, its counts are those of the data sets, its example is a config."""

import re
from pathlib import Path

import pytest

from mmrepmtl.apis import load_config
from mmrepmtl.registry import DATASETS

ROOT = Path(__file__).resolve().parents[1]
GUIDE = (ROOT / 'docs/datasets.md').read_text()


def row(benchmark):
    """The line of the first table."""
    return next(line for line in GUIDE.splitlines() if line.startswith(f'| {benchmark} |'))


def test_configs_and_tools_are_there():
    configs = set(re.findall(r'`(\w+/rep-mtl_[\w.-]+\.py)`', GUIDE))
    assert len(configs) == 12
    tools = set(re.findall(r'python (tools/[\w/]+\.py)', GUIDE))
    assert len(tools) == 10
    links = set(re.findall(r'\]\((\w+\.md)\)', GUIDE))
    for path in (*(f'configs/{config}' for config in configs), *tools, *(f'docs/{link}' for link in links)):
        assert (ROOT / path).is_file(), path
    recipes = {config for config in configs if 'resnet50' in config or '_b64-' in config}
    assert len(recipes) == 6


@pytest.mark.parametrize('name', ['NYUv2Dataset', 'CityscapesDataset', 'PASCALContextDataset'])
def test_counts_are_the_official_ones(name):
    counts = DATASETS.get(name).OFFICIAL_COUNTS
    line = row(dict(PASCALContextDataset='PASCAL-Context').get(name, name.removesuffix('Dataset')))
    assert f'| {counts["train"]} / {counts["val"]}, val = test |' in line and counts['val'] == counts['test']


@pytest.mark.parametrize('name', ['Office31Dataset', 'OfficeHomeDataset'])
def test_counts_of_the_domains_are_the_published_ones(name):
    line = row(dict(Office31Dataset='Office-31', OfficeHomeDataset='Office-Home')[name])
    counts = DATASETS.get(name).OFFICIAL_COUNTS
    assert ', '.join(f'`{domain}`' for domain in counts) in line
    assert ', '.join(' / '.join(map(str, numbers)) for numbers in counts.values()) in line


def test_the_augmented_recipe_is_a_config(tmp_path):
    (block,) = re.findall(r'```python\n(.*?)```', GUIDE, re.S)
    (base,) = re.findall(r"_base_ = \['(.*?)'\]", block)
    config = tmp_path / 'augmented.py'
    config.write_text(block.replace(base, str(ROOT / 'configs/nyuv2' / base)))
    cfg, recipe = load_config(config), load_config(ROOT / 'configs/nyuv2' / base)
    types = [transform.type for transform in cfg.train_dataloader.dataset.pipeline]
    assert types == ['ResizeMultiTask', 'RandomZoom', 'RandomFlip', 'PackMultiTaskInputs']
    assert cfg.test_dataloader == recipe.test_dataloader
