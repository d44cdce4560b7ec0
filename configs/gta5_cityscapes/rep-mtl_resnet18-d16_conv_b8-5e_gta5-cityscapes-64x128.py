# A small one for a CPU: from scratch, 64 x 128, augmented.
_base_ = [
    '../_base_/models/resnet18-d16_conv.py',
    '../_base_/datasets/gta5_cityscapes_128x256.py',
    '../_base_/schedules/adam_200e.py',
    '../_base_/methods/rep-mtl.py',
    '../_base_/default_runtime.py',
]
_decoder = dict(type='ConvDecoder', hidden_channels=64, num_convs=2)
_head = dict(type='SegmentationHead', num_classes=19, decoder=_decoder)
model = dict(encoder_forward='per_task', heads=dict(_delete_=True, gta5=_head, cityscapes=_head))
_resize = [dict(type='ResizeMultiTask', size=(64, 128), interpolation='area')]
_small = dict(gta5=dict(pipeline=_resize), cityscapes=dict(pipeline=_resize))
_augment = [dict(type='RandomZoom'), dict(type='RandomFlip', prob=0.5), dict(type='PackMultiTaskInputs')]
train_dataloader = dict(batch_size=8, num_workers=2, dataset=dict(datasets=_small, pipeline=_augment))
val_dataloader = dict(num_workers=2, dataset=dict(datasets=_small))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=5, val_interval=1)
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=1e-5, by_epoch=True, end=5, convert_to_iter_based=True)]
optim_wrapper = dict(
    optimizer=dict(_base_._optimizer, lr=1e-3),
    shared='encoder',
    regularizers=[
        dict(
            type='RepMTL',
            lambda_tsr=0.9,
            lambda_csa=0.9,
            target_ratio=0.05,
            through='representation',
            shared_samples=False,
        ),
    ],
)
default_hooks = dict(average=dict(type='AverageMetricHook', metric='mIoU'))
