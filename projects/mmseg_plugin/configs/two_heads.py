# A segmentor of one's own, with a head for segmentation and one for depth.
_base_ = ['encoder_decoder.py']
model = dict(
    type='TwoHeadSegmentor',
    auxiliary_head=None,
    depth_head=dict(
        type='DepthFCNHead',
        in_channels=128,
        in_index=3,
        channels=32,
        num_convs=1,
        num_classes=1,
        threshold=0,
        norm_cfg=dict(type='BN', requires_grad=True),
        loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True),  # not used
    ),
)
val_evaluator = [
    dict(type='IoUMetric', iou_metrics=['mIoU'], prefix='semseg'),
    dict(type='DepthMetric', prefix='depth'),
]
test_evaluator = val_evaluator
