# Equal weighting: the plain sum of the task losses.
# The other methods inherit from it and state what differs. An aggregator needs _delete_=True, since a dict is not
# merged into the None here.
optim_wrapper = dict(
    type='MultiTaskOptimWrapper',
    loss_transform=None,
    weighting=dict(type='EqualWeighting'),
    aggregator=None,
    regularizers=[],
)
