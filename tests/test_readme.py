"""The code that the README shows, run."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmrepmtl.registry import MODELS

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / 'README.md').read_text()
BLOCKS = re.findall(r'```python\n(.*?)```', TEXT, re.S)
LINKS = re.findall(r'\]\(((?!http)[^)]+)\)', re.sub(r'```.*?```', '', TEXT, flags=re.S))


def test_the_first_config_builds_a_model(tmp_path):
    config = tmp_path / 'my_first.py'
    config.write_text(BLOCKS[0].replace("'_base_/", f"'{ROOT}/configs/_base_/"))
    cfg = Config.fromfile(config)
    model = MODELS.build(cfg.model)
    assert model.tasks == ('semseg', 'depth', 'normal') and cfg.optim_wrapper.regularizers[0].warmup_iters == 500
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) <= 25


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
    exec(BLOCKS[2], names)
    assert all(not torch.equal(p, q) for p, q in zip((*encoder.parameters(), *heads.parameters()), before, strict=True))
    printed = capsys.readouterr().out
    for name in ('tsr', 'csa', 'entropy', 'share/a', 'positive', 'negative', 'grad_ratio'):
        assert repr(name) in printed
    assert len(BLOCKS[2].splitlines()) <= 17


def test_the_methods_work_without_a_trainer():
    names = {}
    exec(BLOCKS[3], names)
    assert names['combined_P'].shape == (1000,) and names['weights_T'].shape == (3,) and names['scalar'].shape == ()


@pytest.mark.parametrize('link', LINKS)
def test_links_lead_somewhere(link):
    assert (ROOT / link).is_file()
