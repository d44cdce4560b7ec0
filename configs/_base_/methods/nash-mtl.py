# Nash-MTL, ICML 2022: the bargaining solution G a = 1 / a.
optim_wrapper = dict(
    type='MultiTaskOptimWrapper',
    loss_transform=None,
    weighting=dict(type='EqualWeighting'),
    aggregator=dict(type='NashMTL'),
    regularizers=[],
)
