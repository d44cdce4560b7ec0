# NYUv2 reduced to 96 x 128 for a CPU, with augmentation.
_base_ = ['./nyuv2_288x384.py']
_resize = dict(type='ResizeMultiTask', size=(96, 128))
_pack = dict(type='PackMultiTaskInputs')
_train_pipeline = [_resize, dict(type='RandomZoom'), dict(type='RandomFlip', prob=0.5), _pack]
_test_pipeline = [_resize, _pack]
train_dataloader = dict(dataset=dict(pipeline=_train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=_test_pipeline))
test_dataloader = val_dataloader
