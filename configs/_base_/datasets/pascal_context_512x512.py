# PASCAL-Context with five tasks at its own size (the model pads to 512 x 512), from ASTMT's archive or, faster, from
# what tools/dataset_converters/pascal_context.py makes of it. 'val' and 'test' are the same 5105 images, so the last
# checkpoint is the one that counts. One metric per task, as in published tables of Delta p.
data_root = None  # a folder, or None: 'pascal_context' below the environment variable MMREPMTL_DATA
_train_pipeline = [
    dict(type='RandomZoom', scales=(1.0, 1.2, 1.5)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackMultiTaskInputs'),
]
_test_pipeline = [dict(type='PackMultiTaskInputs')]

train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='EpochSampler', shuffle=True),
    dataset=dict(type='PASCALContextDataset', data_root=data_root, split='train', pipeline=_train_pipeline),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='PASCALContextDataset', data_root=data_root, split='val', pipeline=_test_pipeline, test_mode=True
    ),
)
test_dataloader = val_dataloader
_other_metrics = [
    dict(type='SegmentationMetric', task='semseg', report=['mIoU']),
    dict(type='SegmentationMetric', task='human_parts', report=['mIoU']),
    dict(type='SaliencyMetric', task='saliency'),
    dict(type='NormalMetric', task='normal', report=['mean']),
]
# Edges take about a second per image at the 99 thresholds of published numbers: those are for tools/test.py.
val_evaluator = [*_other_metrics, dict(type='EdgeMetric', task='edge', thresholds=9)]
test_evaluator = [*_other_metrics, dict(type='EdgeMetric', task='edge', thresholds=99)]
