# A small one for a CPU: from scratch, 128 x 128.
_base_ = [
    '../_base_/models/resnet50-d8_deeplab_pascal-context.py',
    '../_base_/datasets/pascal_context_128x128.py',
    '../_base_/schedules/adam_200e.py',
    '../_base_/methods/rep-mtl.py',
    '../_base_/default_runtime.py',
]
_decoder = dict(_delete_=True, type='ConvDecoder', hidden_channels=64, num_convs=2)
model = dict(
    data_preprocessor=dict(size_divisor=1),
    encoder=dict(name='resnet18.tv_in1k', output_stride=16),
    heads={task: dict(decoder=_decoder) for task in ('semseg', 'human_parts', 'saliency', 'edge', 'normal')},
)
train_cfg = dict(max_epochs=20, val_interval=5)
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=1e-5, by_epoch=True, end=20, convert_to_iter_based=True)]
optim_wrapper = dict(optimizer=dict(_base_._optimizer, lr=1e-3), shared='encoder')
