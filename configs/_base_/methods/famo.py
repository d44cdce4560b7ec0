# FAMO, NeurIPS 2023: all losses fall at the same relative rate; one more forward pass per step.
optim_wrapper = dict(
    type='MultiTaskOptimWrapper',
    loss_transform=None,
    weighting=dict(type='FAMO'),
    aggregator=None,
    regularizers=[],
)
