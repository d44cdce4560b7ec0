# Rep-MTL on the embedded data set.
_base_ = [
    '../_base_/models/resnet18-d16_conv.py',
    '../_base_/datasets/synth_rooms_96x128.py',
    '../_base_/schedules/adam_200e.py',
    '../_base_/methods/rep-mtl.py',
    '../_base_/default_runtime.py',
]
model = dict(heads=dict(semseg=dict(num_classes=11)))
train_cfg = dict(max_epochs=10, val_interval=1)
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=1e-5, by_epoch=True, end=10, convert_to_iter_based=True)]
optim_wrapper = dict(optimizer=dict(_base_._optimizer, lr=1e-3), shared='encoder')
