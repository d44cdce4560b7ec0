# Ablation of Rep-MTL: task-specific saliency regulation only.
optim_wrapper = dict(
    type='MultiTaskOptimWrapper',
    loss_transform='log',
    weighting=dict(type='EqualWeighting'),
    aggregator=None,
    regularizers=[dict(type='RepMTL', lambda_tsr=0.9, lambda_csa=0.0)],
)
