# GLS, CVPR Workshops 2019: the geometric mean of the losses.
optim_wrapper = dict(
    type='MultiTaskOptimWrapper',
    loss_transform=None,
    weighting=dict(type='GLS'),
    aggregator=None,
    regularizers=[],
)
