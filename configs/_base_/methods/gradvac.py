# GradVac, ICLR 2021: the cosine of each pair of gradients is raised to its moving average.
optim_wrapper = dict(
    type='MultiTaskOptimWrapper',
    loss_transform=None,
    weighting=dict(type='EqualWeighting'),
    aggregator=dict(type='GradVac'),
    regularizers=[],
)
