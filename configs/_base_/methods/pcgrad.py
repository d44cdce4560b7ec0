# PCGrad, NeurIPS 2020: conflicting gradients of the shared parameters are projected.
optim_wrapper = dict(
    type='MultiTaskOptimWrapper',
    loss_transform=None,
    weighting=dict(type='EqualWeighting'),
    aggregator=dict(type='PCGrad'),
    regularizers=[],
)
