"""Runs of a few hundredths of a second: a linear encoder, two heads, eight samples."""

from itertools import count
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from torch import nn
from torch.utils.data import Dataset

from mmrepmtl.registry import DATASETS, METRICS, MODELS
from tests.engine.toy import Identity

# A name for each run: mmengine has one logger for each.
_number = count()


@MODELS.register_module()
class QuickModel(BaseModel):
    """Regresses a number for each of its heads."""

    def __init__(self, heads: tuple = ('a', 'b'), width: int = 3) -> None:
        super().__init__(data_preprocessor=Identity())
        self.encoder = nn.Linear(4, width)
        self.heads = nn.ModuleDict({name: nn.Linear(width, 1) for name in heads})

    def forward(self, inputs, mode='loss'):
        z = torch.tanh(self.encoder(nn.functional.dropout(inputs, 0.1, self.training)))
        if mode == 'loss':
            return {
                f'{task}.loss': (head(z) - inputs.sum(1, keepdim=True)).abs().mean()
                for task, head in self.heads.items()
            }
        return [float(self.heads['a'](z).sum())]


@DATASETS.register_module()
class QuickDataset(Dataset):
    """Samples of four numbers."""

    metainfo = dict(name='quick')

    def __init__(self, length: int = 8, data_root: str = '', ann_file: str = '') -> None:
        self.samples = torch.randn(length, 4, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index) -> dict:
        return dict(inputs=self.samples[int(index)])


@METRICS.register_module()
class QuickMetric(BaseMetric):
    """Mean of the predictions, which training changes."""

    def process(self, data_batch, data_samples) -> None:
        self.results.append(data_samples[0])

    def compute_metrics(self, results) -> dict:
        return {'a/rmse': sum(results) / len(results), 'a/mIoU': 50 + sum(results)}


def quick_config(work_dir, by_epoch: bool = True, **changes) -> Config:
    """A config of 4 batches per epoch and 3 epochs (12 iterations); ``changes`` are dotted keys, with __ for a dot."""
    length = dict(by_epoch=True, max_epochs=3) if by_epoch else dict(by_epoch=False, max_iters=12, val_interval=4)
    loader = dict(
        batch_size=2, num_workers=0, collate_fn=dict(type='default_collate'), dataset=dict(type='QuickDataset')
    )
    sampler = 'DefaultSampler' if by_epoch else 'InfiniteSampler'
    cfg = Config(
        dict(
            work_dir=str(work_dir),
            default_scope='mmrepmtl',
            launcher='none',
            experiment_name=f'{Path(work_dir).name}_{next(_number)}',
            model=dict(type='QuickModel'),
            train_dataloader=dict(loader, sampler=dict(type=sampler, shuffle=True)),
            val_dataloader=dict(loader, sampler=dict(type='DefaultSampler', shuffle=False)),
            val_evaluator=dict(type='QuickMetric'),
            val_cfg=dict(),
            train_cfg=length,
            optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9)),
            param_scheduler=[dict(type='MultiStepLR', milestones=[2], by_epoch=by_epoch)],
            default_hooks=dict(
                checkpoint=dict(type='CheckpointHook', by_epoch=by_epoch, interval=1 if by_epoch else 4),
                logger=dict(type='LoggerHook', interval=100),
            ),
            custom_hooks=[dict(type='ResumeHook'), dict(type='MetricsFileHook'), dict(type='InterruptHook')],
            randomness=dict(seed=3),
            log_level='INFO',
            env_cfg=dict(dist_cfg=dict(backend='gloo')),
        )
    )
    cfg.merge_from_dict({key.replace('__', '.'): value for key, value in changes.items()})
    return cfg


def weights(path) -> dict:
    """The weights in a checkpoint."""
    return torch.load(path, weights_only=False)['state_dict']


def same(a: dict, b: dict) -> bool:
    """Whether two states are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
