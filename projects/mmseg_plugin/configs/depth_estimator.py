# A stock DepthEstimator, whose auxiliary head segments.
_base_ = ['encoder_decoder.py']
model = dict(
    type='DepthEstimator',
    decode_head=dict(
        _delete_=True,
        type='VPDDepthHead',
        in_channels=[16, 32, 64, 128],
        embed_dim=8,
        feature_dim=64,
        num_deconv_layers=1,
        num_deconv_filters=(8,),
        max_depth=10.0,
        loss_decode=dict(type='SiLogLoss'),
    ),
    backbone=dict(strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1)),
)
val_evaluator = [dict(type='DepthMetric', prefix='depth')]
test_evaluator = val_evaluator
