# Ablation of Rep-MTL: cross-task saliency alignment only.
optim_wrapper = dict(
    type='MultiTaskOptimWrapper',
    loss_transform='log',
    weighting=dict(type='EqualWeighting'),
    aggregator=None,
    regularizers=[dict(type='RepMTL', lambda_tsr=0.0, lambda_csa=0.9)],
)
