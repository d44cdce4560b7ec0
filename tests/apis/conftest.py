import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmrepmtl.apis import MultiTaskInferencer
from mmrepmtl.registry import MODELS
from tests.apis.toy import CONFIG, ROOT, TARGETS


@pytest.fixture(scope='module')
def run(tmp_path_factory) -> tuple[Path, Path]:
    """A config and a checkpoint of a random model whose depth is positive."""
    folder = tmp_path_factory.mktemp('run')
    config = folder / 'tiny.py'
    config.write_text(CONFIG)
    torch.manual_seed(0)
    model = MODELS.build(Config.fromfile(config).model)
    with torch.no_grad():
        for task in ('semseg', 'edge', 'normal'):  # so that the picture matters
            model.heads[task].decoder.layers[-1].weight.mul_(20)
        model.heads['depth'].decoder.layers[-1].bias.fill_(3)
    checkpoint = folder / 'weights.pth'
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(targets=TARGETS))), checkpoint)
    return config, checkpoint


@pytest.fixture(scope='module')
def inferencer(run) -> MultiTaskInferencer:
    return MultiTaskInferencer(*run, device='cpu')


@pytest.fixture(scope='module')
def tool(run) -> Callable[..., int]:
    """``tools/infer.py`` in this process, with the model of the tests."""
    spec = importlib.util.spec_from_file_location('infer_tool', ROOT / 'tools/infer.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*arguments, device: str | None = 'cpu') -> int:
        device = ['--device', device] if device else []
        command = [run[0], '--checkpoint', run[1], *device, *arguments]
        return module.main([str(part) for part in command])

    return call


@pytest.fixture
def lines(monkeypatch) -> list[str]:
    """The lines that the inferencer writes to the log."""
    written: list[str] = []
    monkeypatch.setattr('mmrepmtl.apis.inferencer.print_log', lambda message, **_: written.append(message))
    return written
