# The paper's recipe on Cityscapes: 7 classes and inverse depth.
_base_ = [
    '../_base_/models/resnet50-d8_deeplab.py',
    '../_base_/datasets/cityscapes_128x256.py',
    '../_base_/schedules/adam_200e.py',
    '../_base_/methods/rep-mtl-paper.py',
    '../_base_/default_runtime.py',
]
_decoder = dict(type='DeepLabDecoder')
model = dict(
    heads=dict(
        _delete_=True,  # no normals here
        semseg=dict(type='SegmentationHead', num_classes=7, decoder=_decoder),
        depth=dict(type='DepthHead', decoder=_decoder),
    ),
)
optim_wrapper = dict(optimizer=_base_._optimizer, shared='encoder')
