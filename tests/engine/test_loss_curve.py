"""A refactoring must not change the training: twenty steps of Rep-MTL on the embedded data set, against stored ones."""

import json
from pathlib import Path

import pytest
import torch
from mmengine.dataset import pseudo_collate

from mmrepmtl.datasets import SynthRoomsDataset
from mmrepmtl.engine import MultiTaskOptimWrapper
from mmrepmtl.registry import MODELS

CURVE = Path(__file__).with_name('loss_curve.json')


def train(steps: int = 20) -> list[list[float]]:
    """Objective, TSR and CSA of each step."""
    torch.manual_seed(0)
    decoder = dict(type='ConvDecoder', hidden_channels=8, num_convs=1)
    model = MODELS.build(
        dict(
            type='MultiTaskModel',
            encoder=dict(type='TimmEncoder', name='test_resnet'),
            heads=dict(
                semseg=dict(type='SegmentationHead', num_classes=11, decoder=decoder),
                depth=dict(type='DepthHead', decoder=decoder),
                normal=dict(type='NormalHead', decoder=decoder),
            ),
        )
    )
    # Twenty steps of a network with ReLU and BatchNorm magnify rounding, and the rendered images differ by some between
    # processors: float64, small steps and no position where |s_t| nearly cancels keep two machines together.
    model.double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.002)
    penalty = dict(type='RepMTL', lambda_tsr=0.1, lambda_csa=0.1, saliency_floor=0.3)
    settings = dict(loss_transform='log', regularizers=[penalty])
    wrapper = MultiTaskOptimWrapper(optimizer, shared='encoder', **settings)
    pack = [dict(type='PackMultiTaskInputs')]
    data = SynthRoomsDataset(size=(48, 64), num_samples=24, pipeline=pack, test_mode=True)
    curve = []
    for step in range(steps):
        batch = pseudo_collate([data[(6 * step + i) % len(data)] for i in range(6)])
        batch['inputs'] = [image.double() for image in batch['inputs']]
        log = model.train_step(batch, wrapper)
        curve.append([float(log[key].detach()) for key in ('loss', 'rep_mtl/tsr', 'rep_mtl/csa')])
    return curve


def test_the_stored_loss_curve_is_reproduced():
    stored = json.loads(CURVE.read_text())
    assert len(stored) == 20 and stored[-1][0] < stored[0][0]
    for step, (got, expected) in enumerate(zip(train(), stored, strict=True)):
        assert got == pytest.approx(expected, rel=1e-3), f'step {step}'
