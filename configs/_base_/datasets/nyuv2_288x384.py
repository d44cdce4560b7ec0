# NYUv2 at 288 x 384, the size of the preprocessed archives; the first transform reduces the official file, which is
# larger. Augmentation (RandomZoom, RandomFlip) exists but is off, as in the paper's table.
# There is no validation split: 'val' and 'test' are the same 654 images, so the last checkpoint is the one that counts.
data_root = None  # a folder, or None: 'nyuv2' below the environment variable MMREPMTL_DATA
_resize = dict(type='ResizeMultiTask', size=(288, 384), interpolation='area')
_train_pipeline = [_resize, dict(type='PackMultiTaskInputs')]
_test_pipeline = [_resize, dict(type='PackMultiTaskInputs')]

train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='EpochSampler', shuffle=True),
    dataset=dict(type='NYUv2Dataset', data_root=data_root, split='train', pipeline=_train_pipeline),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='NYUv2Dataset', data_root=data_root, split='val', pipeline=_test_pipeline, test_mode=True),
)
test_dataloader = val_dataloader
val_evaluator = [
    dict(type='SegmentationMetric', task='semseg'),
    dict(type='DepthMetric', task='depth'),
    dict(type='NormalMetric', task='normal'),
]
test_evaluator = val_evaluator
