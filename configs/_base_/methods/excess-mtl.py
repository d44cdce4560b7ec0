# ExcessMTL, ICML 2024: losses weighted by estimated excess risk, for which it needs every task's gradient.
optim_wrapper = dict(
    type='MultiTaskOptimWrapper',
    loss_transform=None,
    weighting=dict(type='EqualWeighting'),
    aggregator=dict(type='ExcessMTL'),
    regularizers=[],
)
