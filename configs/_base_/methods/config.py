# ConFIG, ICLR 2025: the direction of equal cosine to all task gradients.
optim_wrapper = dict(
    type='MultiTaskOptimWrapper',
    loss_transform=None,
    weighting=dict(type='EqualWeighting'),
    aggregator=dict(type='ConFIG'),
    regularizers=[],
)
