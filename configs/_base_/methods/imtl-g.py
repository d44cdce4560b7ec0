# IMTL-G, ICLR 2021: equal projections onto all task gradients, at Z.
optim_wrapper = dict(
    type='MultiTaskOptimWrapper',
    loss_transform=None,
    weighting=dict(type='EqualWeighting'),
    aggregator=dict(type='IMTLG', level='representation'),
    regularizers=[],
)
