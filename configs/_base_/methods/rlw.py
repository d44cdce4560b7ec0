# RLW, TMLR 2022: random weights, drawn anew in each step.
optim_wrapper = dict(
    type='MultiTaskOptimWrapper',
    loss_transform=None,
    weighting=dict(type='RLW'),
    aggregator=None,
    regularizers=[],
)
