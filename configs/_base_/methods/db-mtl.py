# DB-MTL: moving averages of the log losses' gradients, all of the largest norm; takes the logarithm itself.
optim_wrapper = dict(
    type='MultiTaskOptimWrapper',
    loss_transform=None,
    weighting=dict(type='EqualWeighting'),
    aggregator=dict(type='DBMTL'),
    regularizers=[],
)
