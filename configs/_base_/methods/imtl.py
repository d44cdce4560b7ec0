# IMTL, ICLR 2021, the hybrid: learned scales of the losses (IMTL-L) and equal projections of their gradients (IMTL-G).
optim_wrapper = dict(
    type='MultiTaskOptimWrapper',
    loss_transform=None,
    weighting=dict(type='IMTLL'),
    aggregator=dict(type='IMTLG', level='representation'),
    regularizers=[],
)
