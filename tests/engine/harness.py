"""Optim wrappers on the toy model, and the loop that runs them."""

import torch
from mmengine.hooks import Hook

from mmrepmtl.engine import MultiTaskOptimWrapper
from mmrepmtl.methods.aggregation import Aggregator, GramianAggregator
from mmrepmtl.utils.checkpoint import load_checkpoint

REP = dict(type='RepMTL', lambda_tsr=0.5, lambda_csa=0.7)


def wrap(model, lr=0.1, momentum=0.9, **kwargs):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    kwargs.setdefault('shared', 'encoder')
    return MultiTaskOptimWrapper(optimizer, **kwargs)


def run(model, wrapper, batches):
    logs = []
    for batch in batches:
        logs.append({key: float(value.detach()) for key, value in model.train_step(batch, wrapper).items()})
    return logs


CASES = {
    'ew': (dict(), dict()),
    'ew-log': (dict(loss_transform='log'), dict(log=True)),
    'rep-mtl': (dict(loss_transform='log', regularizers=[REP]), dict(log=True, lambdas=(0.5, 0.7))),
    'clip': (
        dict(loss_transform='log', regularizers=[REP], clip_grad=dict(max_norm=0.5)),
        dict(log=True, lambdas=(0.5, 0.7), clip=0.5),
    ),
    'pcgrad': (dict(aggregator=dict(type='PCGrad')), dict(use_pcgrad=True)),
    'pcgrad-rep-mtl': (
        dict(aggregator=dict(type='PCGrad'), loss_transform='log', regularizers=[REP], clip_grad=dict(max_norm=0.5)),
        dict(use_pcgrad=True, log=True, lambdas=(0.5, 0.7), clip=0.5),
    ),
}


REP_MTL = dict(loss_transform='log', regularizers=[dict(REP, warmup_iters=3, interval=2)])


def config(work_dir, **kwargs) -> dict:
    """Dropout, augmentation, shuffling, workers and validation: everything that draws random numbers."""
    data = dict(type='SynthRoomsDataset', size=(24, 32), num_samples=8)
    pack = dict(type='PackMultiTaskInputs')
    head = dict(type='ConvDecoder', hidden_channels=4, num_convs=1, dropout=0.3)
    return (
        dict(
            work_dir=str(work_dir),
            default_scope='mmrepmtl',
            launcher='none',
            model=dict(
                type='MultiTaskModel',
                encoder=dict(type='TimmEncoder', name='test_resnet'),
                heads=dict(
                    semseg=dict(type='SegmentationHead', num_classes=11, decoder=head),
                    depth=dict(type='DepthHead', decoder=head),
                ),
            ),
            train_dataloader=dict(
                batch_size=4,
                num_workers=1,
                sampler=dict(type='EpochSampler', shuffle=True),
                dataset=dict(data, pipeline=[dict(type='RandomFlip', prob=0.5), dict(type='RandomZoom'), pack]),
            ),
            val_dataloader=dict(
                batch_size=4,
                num_workers=0,
                sampler=dict(type='DefaultSampler', shuffle=False),
                dataset=dict(data, split='val', test_mode=True, pipeline=[pack]),
            ),
            val_evaluator=[dict(type='DepthMetric', task='depth')],
            val_cfg=dict(),
            train_cfg=dict(by_epoch=True, max_epochs=3),
            optim_wrapper=dict(
                type='MultiTaskOptimWrapper', optimizer=dict(type='Adam', lr=1e-3), shared='encoder', **REP_MTL
            ),
            param_scheduler=[dict(type='MultiStepLR', milestones=[2], by_epoch=True)],
            default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
            custom_hooks=[dict(type='ResumeHook')],
            randomness=dict(seed=3),
        )
        | kwargs
    )


class Interrupt(Hook):
    """Stops the process in the middle of the second epoch."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 3:
            raise KeyboardInterrupt


def parameters(path) -> list:
    return list(load_checkpoint(path)['state_dict'].items())


class Ones(GramianAggregator):
    def weights(self, gramian_TT, losses_T):
        return torch.ones(len(gramian_TT), dtype=torch.float64)


class OnesOnRows(Aggregator):
    levels, has_weights = ('parameter',), False

    def forward(self, gradients_TP, losses_T):
        return gradients_TP.sum(0), None
