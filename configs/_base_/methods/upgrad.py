# UPGrad, arXiv 2406.16232: the mean of the gradients, each projected so that it conflicts with none.
optim_wrapper = dict(
    type='MultiTaskOptimWrapper',
    loss_transform=None,
    weighting=dict(type='EqualWeighting'),
    aggregator=dict(type='UPGrad'),
    regularizers=[],
)
