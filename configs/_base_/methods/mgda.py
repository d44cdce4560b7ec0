# MGDA, NeurIPS 2018: the shortest convex combination of the task gradients.
optim_wrapper = dict(
    type='MultiTaskOptimWrapper',
    loss_transform=None,
    weighting=dict(type='EqualWeighting'),
    aggregator=dict(type='MGDA'),
    regularizers=[],
)
