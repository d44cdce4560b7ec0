# A small one for a CPU: from scratch, 96 x 128, augmented.
_base_ = [
    '../_base_/models/resnet18-d16_conv.py',
    '../_base_/datasets/nyuv2_96x128.py',
    '../_base_/schedules/adam_200e.py',
    '../_base_/methods/rep-mtl.py',
    '../_base_/default_runtime.py',
]
train_cfg = dict(max_epochs=20, val_interval=1)
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=1e-5, by_epoch=True, end=20, convert_to_iter_based=True)]
optim_wrapper = dict(optimizer=dict(_base_._optimizer, lr=1e-3), shared='encoder')
