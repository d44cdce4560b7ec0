# IGBv2, UAI 2023: an agent learns the weights of the log losses; a loop without epochs needs interval=STEPS.
optim_wrapper = dict(
    type='MultiTaskOptimWrapper',
    loss_transform=None,
    weighting=dict(type='IGBv2'),
    aggregator=None,
    regularizers=[],
)
