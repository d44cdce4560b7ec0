# The paper's network on Office-31 and Office-Home: ResNet-18, then global pooling, linear 512-512, BatchNorm, ReLU and
# dropout, whose output (B x 512) is the shared representation; one linear head per task (in the benchmark's config).
# For the paper's initialisation set model.encoder.pretrained=True (timm downloads) or model.encoder.checkpoint to a
# local file. Images are normalised for it.
model = dict(
    type='MultiTaskModel',
    encoder_forward='per_task',
    data_preprocessor=dict(type='MultiTaskDataPreprocessor', mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    encoder=dict(type='TimmEncoder', name='resnet18.tv_in1k', pretrained=False),
    neck=dict(type='GlobalPoolNeck', out_channels=512, dropout=0.5, init_std=0.005),
)
