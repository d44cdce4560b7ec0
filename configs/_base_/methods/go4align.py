# GO4Align, NeurIPS 2024: tasks with similar risk indicators share a weight.
optim_wrapper = dict(
    type='MultiTaskOptimWrapper',
    loss_transform=None,
    weighting=dict(type='GO4Align'),
    aggregator=None,
    regularizers=[],
)
