# MetaBalance, WWW 2022: per layer, gradients are brought near to the norm of the first task's, the target.
optim_wrapper = dict(
    type='MultiTaskOptimWrapper',
    loss_transform=None,
    weighting=dict(type='EqualWeighting'),
    aggregator=dict(type='MetaBalance', target=0),
    regularizers=[],
)
