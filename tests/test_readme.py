"""The code that README and the first pages show, run."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmrepmtl.registry import HOOKS, MODELS, OPTIM_WRAPPERS

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / 'README.md').read_text()
LINKS = re.findall(r'\]\(((?!http)[^)]+)\)', re.sub(r'```.*?```', '', TEXT, flags=re.S))


def blocks(text: str) -> list[str]:
    return re.findall(r'```python\n(.*?)```', text, re.S)


(FIRST_CONFIG,) = blocks((ROOT / 'docs/getting_started.md').read_text())
OPTIM_WRAPPER, LOOP, SINGLE_CALLS = blocks((ROOT / 'docs/own_code.md').read_text())


def test_the_first_config_builds_a_model(tmp_path):
    config = tmp_path / 'my_first.py'
    config.write_text(FIRST_CONFIG.replace("'_base_/", f"'{ROOT}/configs/_base_/"))
    cfg = Config.fromfile(config)
    model = MODELS.build(cfg.model)
    assert model.tasks == ('semseg', 'depth', 'normal') and cfg.optim_wrapper.regularizers[0].warmup_iters == 500
    assert len([line for line in FIRST_CONFIG.splitlines() if line.strip()]) <= 25


def test_the_plain_loop_trains_and_prints_diagnostics(capsys):
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
    deep = nn.Sequential(nn.Conv2d(8, 4, 3), nn.Tanh(), nn.Conv2d(4, 1, 1))
    heads = nn.ModuleDict(dict(a=nn.Conv2d(8, 2, 1), b=deep))
    loss_functions = dict(a=nn.functional.cross_entropy, b=lambda z, y: (z.mean((1, 2, 3)) - y).square().mean())
    targets = dict(a=torch.randint(0, 2, (6, 8, 8)), b=torch.randn(6))
    before = [p.clone() for p in (*encoder.parameters(), *heads.parameters())]
    loader = [(torch.randn(6, 3, 8, 8), targets)] * 2
    names = dict(encoder=encoder, heads=heads, loss_functions=loss_functions, loader=loader)
    exec(LOOP, names)
    assert all(not torch.equal(p, q) for p, q in zip((*encoder.parameters(), *heads.parameters()), before, strict=True))
    printed = capsys.readouterr().out
    for name in ('tsr', 'csa', 'entropy', 'share/a', 'positive', 'negative', 'grad_ratio'):
        assert repr(name) in printed
    assert len(LOOP.splitlines()) <= 17


def test_the_methods_work_without_a_trainer():
    names = {}
    exec(SINGLE_CALLS, names)
    assert names['combined_P'].shape == (1000,) and names['weights_T'].shape == (3,) and names['scalar'].shape == ()


@pytest.mark.parametrize('text', [*blocks(TEXT), OPTIM_WRAPPER])
def test_the_optim_wrapper_of_another_project_is_built(text):
    names: dict = {}
    exec(text, names)
    backbone, config = nn.Linear(2, 2), names['optim_wrapper']
    optimizer = torch.optim.SGD(
        backbone.parameters(), **{k: v for k, v in config.pop('optimizer').items() if k != 'type'}
    )
    wrapper = OPTIM_WRAPPERS.build(dict(config, optimizer=optimizer))
    assert wrapper.shared == 'backbone' and wrapper.tasks == dict(semseg='decode.', depth='aux.')
    assert [type(regularizer).__name__ for regularizer in wrapper.regularizers] == ['RepMTL']
    assert [HOOKS.get(hook['type']).__name__ for hook in names['custom_hooks']] == ['ResumeHook']


@pytest.mark.parametrize('link', LINKS)
def test_links_lead_somewhere(link):
    assert (ROOT / link).is_file()
