# The paper's recipe on NYUv2.
_base_ = [
    '../_base_/models/resnet50-d8_deeplab.py',
    '../_base_/datasets/nyuv2_288x384.py',
    '../_base_/schedules/adam_200e.py',
    '../_base_/methods/rep-mtl-paper.py',
    '../_base_/default_runtime.py',
]
optim_wrapper = dict(optimizer=_base_._optimizer, shared='encoder')
