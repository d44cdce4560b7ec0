# A run of seconds: 24 x 32 pixels, timm's smallest network.
_base_ = [
    '../../configs/_base_/models/resnet18-d16_conv.py',
    '../../configs/_base_/datasets/synth_rooms_96x128.py',
    '../../configs/_base_/schedules/adam_200e.py',
    '../../configs/_base_/methods/rep-mtl.py',
    '../../configs/_base_/default_runtime.py',
]
_decoder = dict(type='ConvDecoder', hidden_channels=4, num_convs=1, dropout=0.1)
_loader = dict(batch_size=4, num_workers=0, persistent_workers=False)
model = dict(
    encoder=dict(name='test_resnet', output_stride=None),
    heads=dict(
        semseg=dict(num_classes=11, decoder=_decoder), depth=dict(decoder=_decoder), normal=dict(decoder=_decoder)
    ),
)
train_dataloader = dict(dataset=dict(size=(24, 32), num_samples=16), **_loader)
val_dataloader = dict(dataset=dict(size=(24, 32), num_samples=7), **_loader)
test_dataloader = dict(dataset=dict(size=(24, 32), num_samples=7), **_loader)
train_cfg = dict(max_epochs=2, val_interval=1)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(max_keep_ckpts=-1))
optim_wrapper = dict(optimizer=dict(type='Adam', lr=1e-3), shared='encoder', diagnostics_interval=1)
