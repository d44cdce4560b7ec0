# `make quickstart`: a few minutes on two CPU cores. The encoder starts from the ImageNet weights of a package, and a
# pyramid over four of its levels lets the heads see objects. The penalty is that of the small network from scratch
# which docs/benchmarks.md has; it was not chosen anew for this one.
_base_ = [
    '../_base_/models/resnet18-d16_conv.py',
    '../_base_/datasets/synth_rooms_96x128.py',
    '../_base_/schedules/adam_200e.py',
    '../_base_/methods/rep-mtl.py',
    '../_base_/default_runtime.py',
]
_decoder = dict(type='ConvDecoder', hidden_channels=48, num_convs=2)
# One over the root of each class's share of the pixels, roughly: a lamp has 1 %, the walls 37 %.
_class_weight = (0.4, 0.5, 1.0, 1.0, 1.1, 1.4, 0.8, 1.2, 1.4, 1.6, 2.2)
model = dict(
    data_preprocessor=dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),  # as these weights were trained
    encoder=dict(
        name='tf_efficientnet_lite0',
        pretrained='package',
        output_stride=None,
        out_indices=(1, 2, 3, 4),
        channels_last=True,  # faster on a CPU
    ),
    neck=dict(type='FPNNeck', out_channels=48),
    heads=dict(
        semseg=dict(num_classes=11, decoder=_decoder, class_weight=_class_weight),
        depth=dict(decoder=_decoder),
        normal=dict(decoder=_decoder),
    ),
)
train_dataloader = dict(batch_size=16, dataset=dict(num_samples=900))
val_dataloader = dict(batch_size=32)
test_dataloader = dict(batch_size=32)
train_cfg = dict(max_epochs=5, val_interval=5)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=30),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, T_max=5, convert_to_iter_based=True),
]
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(max_keep_ckpts=1))
optim_wrapper = dict(
    optimizer=dict(_base_._optimizer, lr=2e-3),
    shared='encoder',
    # At every fourth step it takes a quarter of the time; its weight is four times as large there.
    regularizers=[dict(type='RepMTL', lambda_tsr=0.02, lambda_csa=0.05, through='representation', interval=4)],
)
