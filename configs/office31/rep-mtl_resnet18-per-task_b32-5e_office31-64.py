# A small one for a CPU: from scratch, 64 x 64, augmented, and Rep-MTL as in _base_/methods/rep-mtl.py.
_base_ = ['./rep-mtl_resnet18-per-task_b64-100e_office31-224.py']
_resize = dict(type='ResizeMultiTask', size=(64, 64), interpolation='area')
_train_pipeline = [_resize, dict(type='RandomFlip', prob=0.5), dict(type='PackMultiTaskInputs')]
_test_pipeline = [_resize, dict(type='PackMultiTaskInputs')]
train_dataloader = dict(batch_size=32, num_workers=2, dataset=dict(pipeline=_train_pipeline))
val_dataloader = dict(num_workers=2, dataset=dict(pipeline=_test_pipeline))
test_dataloader = dict(num_workers=2, dataset=dict(pipeline=_test_pipeline))
train_cfg = dict(max_epochs=5)
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=1e-5, by_epoch=True, end=5, convert_to_iter_based=True)]
optim_wrapper = dict(
    optimizer=dict(lr=1e-3),
    regularizers=[
        dict(
            type='RepMTL',
            lambda_tsr=0.9,
            lambda_csa=0.9,
            target_ratio=0.05,
            through='representation',
            shared_samples=False,
        ),
    ],
)
