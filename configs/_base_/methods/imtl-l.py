# IMTL-L, ICLR 2021: learned scales make all scaled losses equal.
optim_wrapper = dict(
    type='MultiTaskOptimWrapper',
    loss_transform=None,
    weighting=dict(type='IMTLL'),
    aggregator=None,
    regularizers=[],
)
