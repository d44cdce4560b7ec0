# DualProj: the mean gradient, projected so that it conflicts with no gradient (GEM, NeurIPS 2017).
optim_wrapper = dict(
    type='MultiTaskOptimWrapper',
    loss_transform=None,
    weighting=dict(type='EqualWeighting'),
    aggregator=dict(type='DualProj'),
    regularizers=[],
)
