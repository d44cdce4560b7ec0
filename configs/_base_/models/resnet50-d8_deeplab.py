# The paper's network on NYUv2 and Cityscapes: dilated ResNet-50 (23.5 M), one DeepLab head per task (16.1 M each). For
# the paper's initialisation set model.encoder.pretrained=True (timm downloads) or model.encoder.checkpoint to a local
# file.
_decoder = dict(type='DeepLabDecoder')
model = dict(
    type='MultiTaskModel',
    data_preprocessor=dict(type='MultiTaskDataPreprocessor'),
    encoder=dict(type='TimmEncoder', name='resnet50.tv_in1k', output_stride=8, pretrained=False),
    heads=dict(
        semseg=dict(type='SegmentationHead', num_classes=13, decoder=_decoder),
        depth=dict(type='DepthHead', decoder=_decoder),
        normal=dict(type='NormalHead', decoder=_decoder),
    ),
)
