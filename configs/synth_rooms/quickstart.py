# `make quickstart`: a few minutes on two CPU cores. A small network from scratch needs a far weaker penalty than the
# paper's ImageNet encoder; its weights were chosen on the validation split (docs/benchmarks.md).
_base_ = [
    '../_base_/models/resnet18-d16_conv.py',
    '../_base_/datasets/synth_rooms_96x128.py',
    '../_base_/schedules/adam_200e.py',
    '../_base_/methods/rep-mtl.py',
    '../_base_/default_runtime.py',
]
_decoder = dict(type='ConvDecoder', hidden_channels=32, num_convs=2)
model = dict(
    encoder=dict(name='resnet10t', output_stride=8, model_args=dict(channels=(32, 64, 96, 128))),
    heads=dict(
        semseg=dict(num_classes=11, decoder=_decoder), depth=dict(decoder=_decoder), normal=dict(decoder=_decoder)
    ),
)
train_dataloader = dict(batch_size=16, dataset=dict(num_samples=1000))
val_dataloader = dict(batch_size=32)
test_dataloader = dict(batch_size=32)
train_cfg = dict(max_epochs=5, val_interval=5)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=30),
    dict(type='CosineAnnealingLR', eta_min=2e-5, by_epoch=True, T_max=5, convert_to_iter_based=True),
]
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(max_keep_ckpts=1))
optim_wrapper = dict(
    optimizer=dict(_base_._optimizer, lr=2e-3),
    shared='encoder',
    regularizers=[dict(type='RepMTL', lambda_tsr=0.02, lambda_csa=0.05, through='representation')],
)
