# Ablation of Rep-MTL at the paper's weight: cross-task saliency alignment only.
_base_ = './ew.py'
optim_wrapper = dict(loss_transform='log', regularizers=[dict(type='RepMTL', lambda_tsr=0.0, lambda_csa=0.9)])
