# Equal weighting of log losses: what Rep-MTL adds its penalty to, and its fair yardstick.
optim_wrapper = dict(
    type='MultiTaskOptimWrapper',
    loss_transform='log',
    weighting=dict(type='EqualWeighting'),
    aggregator=None,
    regularizers=[],
)
