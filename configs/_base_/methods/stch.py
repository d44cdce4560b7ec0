# STCH, ICML 2024: a smooth maximum of the losses after a warm-up; a loop without epochs needs interval=STEPS.
optim_wrapper = dict(
    type='MultiTaskOptimWrapper',
    loss_transform=None,
    weighting=dict(type='STCH'),
    aggregator=None,
    regularizers=[],
)
