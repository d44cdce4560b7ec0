# DWA, CVPR 2019: tasks whose loss falls more slowly weigh more; a loop without epochs needs interval=STEPS.
optim_wrapper = dict(
    type='MultiTaskOptimWrapper',
    loss_transform=None,
    weighting=dict(type='DWA'),
    aggregator=None,
    regularizers=[],
)
