# Ablation of Rep-MTL at the paper's weight: task-specific saliency regulation only.
_base_ = './ew.py'
optim_wrapper = dict(loss_transform='log', regularizers=[dict(type='RepMTL', lambda_tsr=0.9, lambda_csa=0.0)])
