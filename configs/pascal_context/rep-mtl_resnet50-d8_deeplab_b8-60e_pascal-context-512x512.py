# Rep-MTL on PASCAL-Context with the paper's network and optimiser; the paper has no such experiment, so the schedule
# (60 epochs, falling to nearly 0) is ours.
_base_ = [
    '../_base_/models/resnet50-d8_deeplab_pascal-context.py',
    '../_base_/datasets/pascal_context_512x512.py',
    '../_base_/schedules/adam_200e.py',
    '../_base_/methods/rep-mtl-paper.py',
    '../_base_/default_runtime.py',
]
train_cfg = dict(max_epochs=60, val_interval=20)
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=1e-6, by_epoch=True, end=60, convert_to_iter_based=True)]
optim_wrapper = dict(optimizer=_base_._optimizer, shared='encoder')
