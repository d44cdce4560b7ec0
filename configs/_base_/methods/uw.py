# UW, CVPR 2018: each loss divided by a learned variance.
optim_wrapper = dict(
    type='MultiTaskOptimWrapper',
    loss_transform=None,
    weighting=dict(type='UncertaintyWeighting'),
    aggregator=None,
    regularizers=[],
)
