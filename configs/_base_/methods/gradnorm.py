# GradNorm, ICML 2018: loss weights that equalise the rates at which the tasks train.
optim_wrapper = dict(
    type='MultiTaskOptimWrapper',
    loss_transform=None,
    weighting=dict(type='EqualWeighting'),
    aggregator=dict(type='GradNorm'),
    regularizers=[],
)
