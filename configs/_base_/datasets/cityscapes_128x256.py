# Cityscapes at 128 x 256 with 7 classes and inverse depth, from MTAN's archive, or from the official files (slower: the
# first transform then reduces them; tools/dataset_converters/cityscapes.py does it once). No augmentation, as in the
# paper. 'val' and 'test' are the same 500 images, so the last checkpoint is the one that counts.
data_root = None  # a folder, or None: 'cityscapes' below the environment variable MMREPMTL_DATA
_pipeline = [
    dict(type='ResizeMultiTask', size=(128, 256), interpolation='area'),
    dict(type='PackMultiTaskInputs'),
]

train_dataloader = dict(
    batch_size=64,
    num_workers=4,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='EpochSampler', shuffle=True),
    dataset=dict(type='CityscapesDataset', data_root=data_root, split='train', num_classes=7, pipeline=_pipeline),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CityscapesDataset', data_root=data_root, split='val', num_classes=7, pipeline=_pipeline, test_mode=True
    ),
)
test_dataloader = val_dataloader
val_evaluator = [
    dict(type='SegmentationMetric', task='semseg'),
    dict(type='DepthMetric', task='depth'),
]
test_evaluator = val_evaluator
