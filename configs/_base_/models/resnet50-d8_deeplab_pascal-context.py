# The paper's network with five heads, for PASCAL-Context, which the paper does not have: dilated ResNet-50 and one
# DeepLab head per task. Loss weights and the edges' positive weight are those of ASTMT; the weights belong to its
# losses, among them L1 for normals, where this has 1 - cosine. With the logarithm of the losses, constant weights
# change nothing. For ImageNet's initialisation set model.encoder.pretrained=True (timm downloads) or
# model.encoder.checkpoint to a local file; images are normalised for it. All are padded to 512 x 512, so a prediction
# does not depend on the others in the batch; PASCAL's images have at most 500 pixels a side.
_decoder = dict(type='DeepLabDecoder')
model = dict(
    type='MultiTaskModel',
    data_preprocessor=dict(
        type='MultiTaskDataPreprocessor', mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), size_divisor=512
    ),
    encoder=dict(type='TimmEncoder', name='resnet50.tv_in1k', output_stride=8, pretrained=False),
    heads=dict(
        semseg=dict(type='SegmentationHead', num_classes=21, decoder=_decoder, loss_weight=1.0),
        human_parts=dict(type='SegmentationHead', num_classes=7, decoder=_decoder, loss_weight=2.0),
        saliency=dict(type='BinaryHead', positive_weight='balanced', decoder=_decoder, loss_weight=5.0),
        edge=dict(type='BinaryHead', positive_weight=0.95, decoder=_decoder, loss_weight=50.0),
        normal=dict(type='NormalHead', decoder=_decoder, loss_weight=10.0),
    ),
)
