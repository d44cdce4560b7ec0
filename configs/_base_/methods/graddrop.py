# GradDrop, NeurIPS 2020: per feature position of Z the gradients of one sign, drawn by its share, are kept.
optim_wrapper = dict(
    type='MultiTaskOptimWrapper',
    loss_transform=None,
    weighting=dict(type='EqualWeighting'),
    aggregator=dict(type='GradDrop', level='representation'),
    regularizers=[],
)
