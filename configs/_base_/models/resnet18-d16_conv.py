# A small network for a CPU: ResNet-18 at stride 16, one light convolutional head per task.
_decoder = dict(type='ConvDecoder', hidden_channels=64, num_convs=2)
model = dict(
    type='MultiTaskModel',
    data_preprocessor=dict(type='MultiTaskDataPreprocessor'),
    encoder=dict(type='TimmEncoder', name='resnet18.tv_in1k', output_stride=16, pretrained=False),
    heads=dict(
        semseg=dict(type='SegmentationHead', num_classes=13, decoder=_decoder),
        depth=dict(type='DepthHead', decoder=_decoder),
        normal=dict(type='NormalHead', decoder=_decoder),
    ),
)
