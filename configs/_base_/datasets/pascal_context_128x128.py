# PASCAL-Context reduced to 128 x 128 for a CPU; the metrics are at that size, too, and not comparable with others.
_base_ = ['./pascal_context_512x512.py']
_resize = dict(type='ResizeMultiTask', size=(128, 128), interpolation='area')
_train_pipeline = [_resize, dict(type='RandomFlip', prob=0.5), dict(type='PackMultiTaskInputs')]
_test_pipeline = [_resize, dict(type='PackMultiTaskInputs')]
train_dataloader = dict(batch_size=16, num_workers=2, dataset=dict(pipeline=_train_pipeline))
val_dataloader = dict(num_workers=2, dataset=dict(pipeline=_test_pipeline))
test_dataloader = dict(num_workers=2, dataset=dict(pipeline=_test_pipeline))
