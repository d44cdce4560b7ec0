# Equal weighting: the plain sum of the task losses.
optim_wrapper = dict(
    type='MultiTaskOptimWrapper',
    loss_transform=None,
    weighting=dict(type='EqualWeighting'),
    aggregator=None,
    regularizers=[],
)
