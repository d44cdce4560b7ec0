# Office-31: each domain is a task with samples of its own. No augmentation. The validation split is real, so a
# checkpoint may be selected on it (avg/top1).
data_root = None  # a folder, or None: 'office31' below the environment variable MMREPMTL_DATA
split_dir = 'splits'  # holds the lists DOMAIN_{train,val,test}.txt; a relative path starts at data_root
_domains = ['amazon', 'dslr', 'webcam']
_pipeline = [
    dict(type='ResizeMultiTask', size=(224, 224), interpolation='area'),
    dict(type='PackMultiTaskInputs'),
]

_domain = dict(type='Office31Dataset', split_dir=split_dir)
_dataset = dict(type='MultiDomainDataset', data_root=data_root, pipeline=_pipeline)
_loader = dict(batch_size=64, num_workers=4, persistent_workers=True)  # per domain
_test_loader = dict(sampler=dict(type='DefaultSampler', shuffle=False), **_loader)

train_dataloader = dict(
    sampler=dict(type='EpochSampler', shuffle=True),
    batch_sampler=dict(type='DomainBatchSampler', drop_last=True),  # 26 batches of the longest one are an epoch
    dataset=dict(datasets={d: dict(domain=d, split='train', **_domain) for d in _domains}, **_dataset),
    **_loader,
)
val_dataloader = dict(
    dataset=dict(datasets={d: dict(domain=d, split='val', **_domain) for d in _domains}, test_mode=True, **_dataset),
    **_test_loader,
)
test_dataloader = dict(
    dataset=dict(datasets={d: dict(domain=d, split='test', **_domain) for d in _domains}, test_mode=True, **_dataset),
    **_test_loader,
)
val_evaluator = [dict(type='ClassificationMetric', task=d) for d in _domains]
test_evaluator = val_evaluator
