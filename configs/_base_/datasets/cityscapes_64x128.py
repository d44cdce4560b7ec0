# Cityscapes reduced to 64 x 128 for a CPU, with augmentation; see cityscapes_128x256.py.
data_root = None  # a folder, or None: 'cityscapes' below the environment variable MMREPMTL_DATA
_train_pipeline = [
    dict(type='ResizeMultiTask', size=(64, 128), interpolation='area'),
    dict(type='RandomZoom'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackMultiTaskInputs'),
]
_test_pipeline = [
    dict(type='ResizeMultiTask', size=(64, 128), interpolation='area'),
    dict(type='PackMultiTaskInputs'),
]

train_dataloader = dict(
    batch_size=16,
    num_workers=2,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='EpochSampler', shuffle=True),
    dataset=dict(type='CityscapesDataset', data_root=data_root, split='train', num_classes=7, pipeline=_train_pipeline),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CityscapesDataset',
        data_root=data_root,
        split='val',
        num_classes=7,
        pipeline=_test_pipeline,
        test_mode=True,
    ),
)
test_dataloader = val_dataloader
val_evaluator = [
    dict(type='SegmentationMetric', task='semseg'),
    dict(type='DepthMetric', task='depth'),
]
test_evaluator = val_evaluator
