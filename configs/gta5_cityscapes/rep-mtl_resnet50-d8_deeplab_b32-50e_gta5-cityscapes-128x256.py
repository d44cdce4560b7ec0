# GTA5 -> Cityscapes with the paper's network for Cityscapes, one head per domain. The paper does not state batch size,
# epochs and image size of this benchmark; those here are this repository's choice.
_base_ = [
    '../_base_/models/resnet50-d8_deeplab.py',
    '../_base_/datasets/gta5_cityscapes_128x256.py',
    '../_base_/schedules/adam_200e.py',
    '../_base_/methods/rep-mtl-paper.py',
    '../_base_/default_runtime.py',
]
_head = dict(type='SegmentationHead', num_classes=19, decoder=dict(type='DeepLabDecoder'))
model = dict(encoder_forward='per_task', heads=dict(_delete_=True, gta5=_head, cityscapes=_head))
train_cfg = dict(max_epochs=50, val_interval=5)
param_scheduler = [dict(type='MultiStepLR', milestones=[25], gamma=0.5, by_epoch=True)]
optim_wrapper = dict(
    optimizer=_base_._optimizer,
    shared='encoder',
    regularizers=[dict(type='RepMTL', lambda_tsr=0.9, lambda_csa=0.9, shared_samples=False)],
)
default_hooks = dict(average=dict(type='AverageMetricHook', metric='mIoU'))
