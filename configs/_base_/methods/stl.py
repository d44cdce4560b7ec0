# Single-task learning, the baseline of Delta p: tools/train.py trains each task alone and writes one results file.
single_task = True
optim_wrapper = dict(
    type='MultiTaskOptimWrapper',
    loss_transform=None,
    weighting=dict(type='EqualWeighting'),
    aggregator=None,
    regularizers=[],
)
