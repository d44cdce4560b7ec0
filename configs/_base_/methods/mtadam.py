# MTAdam, EMNLP 2021: replaces the optimizer of the shared parameters; heads keep the one of the schedule.
optim_wrapper = dict(
    type='MultiTaskOptimWrapper',
    loss_transform=None,
    weighting=dict(type='EqualWeighting'),
    aggregator=dict(type='MTAdam'),
    regularizers=[],
)
