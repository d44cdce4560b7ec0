# Ablation of Rep-MTL at the strength of rep-mtl: task-specific saliency regulation only.
_base_ = './ew.py'
optim_wrapper = dict(
    loss_transform='log',
    regularizers=[
        dict(type='RepMTL', lambda_tsr=0.9, lambda_csa=0.0, target_ratio=0.05, through='representation'),
    ],
)
