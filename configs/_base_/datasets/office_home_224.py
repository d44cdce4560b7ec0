# Office-Home: each domain is a task with samples of its own. No augmentation. The validation split is real, so a
# checkpoint may be selected on it (avg/top1).
data_root = None  # a folder, or None: 'office_home' below the environment variable MMREPMTL_DATA
split_dir = 'splits'  # of the lists DOMAIN_{train,val,test}.txt; a relative path starts at data_root
_domains = ['Art', 'Clipart', 'Product', 'Real_World']
_pipeline = [
    dict(type='ResizeMultiTask', size=(224, 224), interpolation='area'),
    dict(type='PackMultiTaskInputs'),
]

train_dataloader = dict(
    batch_size=64,  # of each domain; 41 batches of the longest one are an epoch
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='EpochSampler', shuffle=True),
    batch_sampler=dict(type='DomainBatchSampler', drop_last=True),
    dataset=dict(
        type='MultiDomainDataset',
        data_root=data_root,
        datasets={d: dict(type='OfficeHomeDataset', domain=d, split='train', split_dir=split_dir) for d in _domains},
        pipeline=_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='MultiDomainDataset',
        data_root=data_root,
        datasets={d: dict(type='OfficeHomeDataset', domain=d, split='val', split_dir=split_dir) for d in _domains},
        pipeline=_pipeline,
        test_mode=True,
    ),
)
test_dataloader = dict(
    batch_size=64,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='MultiDomainDataset',
        data_root=data_root,
        datasets={d: dict(type='OfficeHomeDataset', domain=d, split='test', split_dir=split_dir) for d in _domains},
        pipeline=_pipeline,
        test_mode=True,
    ),
)
val_evaluator = [dict(type='ClassificationMetric', task=d) for d in _domains]
test_evaluator = val_evaluator
