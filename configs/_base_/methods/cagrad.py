# CAGrad, NeurIPS 2021: the largest worst-case improvement within a ball around the mean gradient.
optim_wrapper = dict(
    type='MultiTaskOptimWrapper',
    loss_transform=None,
    weighting=dict(type='EqualWeighting'),
    aggregator=dict(type='CAGrad'),
    regularizers=[],
)
