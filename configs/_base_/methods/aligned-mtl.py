# Aligned-MTL, CVPR 2023: gradients aligned to a condition number of 1.
optim_wrapper = dict(
    type='MultiTaskOptimWrapper',
    loss_transform=None,
    weighting=dict(type='EqualWeighting'),
    aggregator=dict(type='AlignedMTL'),
    regularizers=[],
)
