# The paper's recipe on Office-Home: the encoder runs once per task, so BatchNorm sees one domain at a time.
_base_ = [
    '../_base_/models/resnet18_office.py',
    '../_base_/datasets/office_home_224.py',
    '../_base_/schedules/adam_100e.py',
    '../_base_/methods/rep-mtl-paper.py',
    '../_base_/default_runtime.py',
]
model = dict(
    heads={d: dict(type='ClassificationHead', num_classes=65) for d in ('Art', 'Clipart', 'Product', 'Real_World')},
)
optim_wrapper = dict(
    optimizer=_base_._optimizer,
    shared='neck',
    regularizers=[dict(type='RepMTL', lambda_tsr=0.9, lambda_csa=0.9, shared_samples=False)],
)
default_hooks = dict(average=dict(type='AverageMetricHook', metric='top1'))
