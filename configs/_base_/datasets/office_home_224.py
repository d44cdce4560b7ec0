# Office-Home: as Office-31, but with four other domains; 41 batches of the longest one are an epoch.
_base_ = ['./office31_224.py']
split_dir = 'splits'  # holds the lists DOMAIN_{train,val,test}.txt; a relative path starts at data_root
_domains = ['Art', 'Clipart', 'Product', 'Real_World']
_domain = dict(type='OfficeHomeDataset', split_dir=split_dir)


def _of_split(split):
    domains = {d: dict(domain=d, split=split, **_domain) for d in _domains}
    return dict(dataset=dict(datasets=dict(_delete_=True, **domains)))


train_dataloader = _of_split('train')
val_dataloader = _of_split('val')
test_dataloader = _of_split('test')
val_evaluator = [dict(type='ClassificationMetric', task=d) for d in _domains]
test_evaluator = val_evaluator
