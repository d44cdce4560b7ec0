# GTA5 -> Cityscapes: the 19 classes in two domains, each a task with samples of its own. From the converted or the
# official files; the domains' own pipelines bring them to one size. GTA5 by its official split.mat; Cityscapes has no
# labelled test set: 'val' and 'test' are its 500 validation images (and GTA5's test split), so the last checkpoint is
# the one that counts.
data_root = None  # the folder above gta5 (with split.mat) and cityscapes; None: the environment variable MMREPMTL_DATA
_resize = [dict(type='ResizeMultiTask', size=(128, 256), interpolation='area')]
_gta5 = dict(type='GTA5Dataset', data_root='gta5', split_file='split.mat', pipeline=_resize)
_cityscapes = dict(
    type='CityscapesDataset', data_root='cityscapes', num_classes=19, targets=['semseg'], pipeline=_resize
)
_pipeline = [dict(type='PackMultiTaskInputs')]

train_dataloader = dict(
    batch_size=32,  # per domain; 387 batches of GTA5 are an epoch
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='EpochSampler', shuffle=True),
    batch_sampler=dict(type='DomainBatchSampler', drop_last=True),
    dataset=dict(
        type='MultiDomainDataset',
        data_root=data_root,
        datasets=dict(gta5=dict(split='train', **_gta5), cityscapes=dict(split='train', **_cityscapes)),
        pipeline=_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=32,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='MultiDomainDataset',
        data_root=data_root,
        datasets=dict(gta5=dict(split='test', **_gta5), cityscapes=dict(split='val', **_cityscapes)),
        pipeline=_pipeline,
        test_mode=True,
    ),
)
test_dataloader = val_dataloader
val_evaluator = [dict(type='SegmentationMetric', task='gta5'), dict(type='SegmentationMetric', task='cityscapes')]
test_evaluator = val_evaluator
