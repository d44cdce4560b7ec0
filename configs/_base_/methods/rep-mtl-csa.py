# Ablation of Rep-MTL at the strength of rep-mtl: cross-task saliency alignment only.
_base_ = './ew.py'
optim_wrapper = dict(
    loss_transform='log',
    regularizers=[
        dict(type='RepMTL', lambda_tsr=0.0, lambda_csa=0.9, target_ratio=0.05, through='representation'),
    ],
)
