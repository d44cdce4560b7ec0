# SDMGrad, NeurIPS 2023: direction-oriented MGDA. One step takes three batches: two for the weights, one for the step.
optim_wrapper = dict(
    type='MultiTaskOptimWrapper',
    loss_transform=None,
    weighting=dict(type='EqualWeighting'),
    aggregator=dict(type='SDMGrad'),
    regularizers=[],
    accumulative_counts=3,
)
