# Rep-MTL at a strength that needs no tuning: its gradient at Z is held at 5 % of the tasks', and spares the heads.
_base_ = './ew.py'
optim_wrapper = dict(
    loss_transform='log',
    regularizers=[
        dict(type='RepMTL', lambda_tsr=0.9, lambda_csa=0.9, target_ratio=0.05, through='representation'),
    ],
)
