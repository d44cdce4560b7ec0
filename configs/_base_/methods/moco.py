# MoCo, ICLR 2023: moving averages of the gradients, weighted towards their minimum-norm combination.
optim_wrapper = dict(
    type='MultiTaskOptimWrapper',
    loss_transform=None,
    weighting=dict(type='EqualWeighting'),
    aggregator=dict(type='MoCo'),
    regularizers=[],
)
