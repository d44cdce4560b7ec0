# Rep-MTL, ICCV 2025: equal weighting of log losses + TSR + CSA at the weights that the paper's sweeps are anchored at.
_base_ = './ew.py'
optim_wrapper = dict(loss_transform='log', regularizers=[dict(type='RepMTL', lambda_tsr=0.9, lambda_csa=0.9)])
