# Rep-MTL, ICCV 2025: equal weighting of log losses + TSR + CSA at the weights that the paper's sweeps are anchored at.
optim_wrapper = dict(
    type='MultiTaskOptimWrapper',
    loss_transform='log',
    weighting=dict(type='EqualWeighting'),
    aggregator=None,
    regularizers=[dict(type='RepMTL', lambda_tsr=0.9, lambda_csa=0.9)],
)
