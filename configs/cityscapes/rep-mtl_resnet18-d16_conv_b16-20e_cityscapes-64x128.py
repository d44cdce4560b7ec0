# A small one for a CPU: from scratch, 64 x 128, augmented.
_base_ = [
    '../_base_/models/resnet18-d16_conv.py',
    '../_base_/datasets/cityscapes_64x128.py',
    '../_base_/schedules/adam_200e.py',
    '../_base_/methods/rep-mtl.py',
    '../_base_/default_runtime.py',
]
_decoder = dict(type='ConvDecoder', hidden_channels=64, num_convs=2)
model = dict(
    heads=dict(
        _delete_=True,  # no normals here
        semseg=dict(type='SegmentationHead', num_classes=7, decoder=_decoder),
        depth=dict(type='DepthHead', decoder=_decoder),
    ),
)
train_cfg = dict(max_epochs=20, val_interval=1)
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=1e-5, by_epoch=True, end=20, convert_to_iter_based=True)]
optim_wrapper = dict(optimizer=dict(_base_._optimizer, lr=1e-3), shared='encoder')
