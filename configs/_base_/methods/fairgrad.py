# FairGrad, ICML 2024: the alpha-fair combination of the gradients.
optim_wrapper = dict(
    type='MultiTaskOptimWrapper',
    loss_transform=None,
    weighting=dict(type='EqualWeighting'),
    aggregator=dict(type='FairGrad'),
    regularizers=[],
)
