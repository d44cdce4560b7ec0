# Cityscapes reduced to 64 x 128 for a CPU, with augmentation.
_base_ = ['./cityscapes_128x256.py']
_resize = dict(type='ResizeMultiTask', size=(64, 128), interpolation='area')
_pack = dict(type='PackMultiTaskInputs')
_train_pipeline = [_resize, dict(type='RandomZoom'), dict(type='RandomFlip', prob=0.5), _pack]
_test_pipeline = [_resize, _pack]
train_dataloader = dict(batch_size=16, num_workers=2, dataset=dict(pipeline=_train_pipeline))
val_dataloader = dict(batch_size=16, num_workers=2, dataset=dict(pipeline=_test_pipeline))
test_dataloader = val_dataloader
