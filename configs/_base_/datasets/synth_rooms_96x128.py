# The embedded data set: rooms rendered when asked for, nothing to download. Splits share no rooms.
data_root = None  # not used; accepted so that --data-root works on every config
_train_pipeline = [dict(type='RandomFlip', prob=0.5), dict(type='PackMultiTaskInputs')]
_test_pipeline = [dict(type='PackMultiTaskInputs')]
_size = (96, 128)

train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='EpochSampler', shuffle=True),
    dataset=dict(type='SynthRoomsDataset', split='train', size=_size, num_samples=2000, pipeline=_train_pipeline),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='SynthRoomsDataset', split='val', size=_size, num_samples=200, pipeline=_test_pipeline, test_mode=True
    ),
)
test_dataloader = dict(
    batch_size=16,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='SynthRoomsDataset', split='test', size=_size, num_samples=300, pipeline=_test_pipeline, test_mode=True
    ),
)
val_evaluator = [
    dict(type='SegmentationMetric', task='semseg'),
    dict(type='DepthMetric', task='depth'),
    dict(type='NormalMetric', task='normal'),
]
test_evaluator = val_evaluator
