# The run of tiny.py as a pure-Python config: classes, functions and partials instead of names, here and in its base.
from mmengine.config import read_base

with read_base():
    from .classes_base import *  # noqa: F403

import torch
from mmengine.hooks import LoggerHook
from mmengine.runner import EpochBasedTrainLoop, TestLoop, ValLoop

from mmrepmtl.engine import MetricsFileHook, MultiTaskOptimWrapper, ResumeHook
from mmrepmtl.methods.rep_mtl import RepMTL
from mmrepmtl.methods.weighting import EqualWeighting
from tests.tools.own_parts import CountingHook

train_cfg = dict(type=EpochBasedTrainLoop, max_epochs=2, val_interval=1)
val_cfg = dict(type=ValLoop)
test_cfg = dict(type=TestLoop)
param_scheduler = []
optim_wrapper = dict(
    type=MultiTaskOptimWrapper,
    optimizer=dict(type=torch.optim.Adam, lr=1e-3),
    shared='encoder',
    loss_transform='log',
    weighting=dict(type=EqualWeighting),
    aggregator=None,
    regularizers=[dict(type=RepMTL, lambda_tsr=0.9, lambda_csa=0.9, target_ratio=0.05, through='representation')],
    diagnostics_interval=1,
)
custom_hooks = [dict(type=ResumeHook), dict(type=MetricsFileHook), dict(type=CountingHook)]
default_hooks = dict(logger=dict(type=LoggerHook, interval=1))
