# The paper's schedule on NYUv2 and Cityscapes: 200 epochs, learning rate halved after 100.
_optimizer = dict(type='Adam', lr=1e-4, weight_decay=1e-5)  # a recipe takes it as _base_._optimizer
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=200, val_interval=10)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
param_scheduler = [dict(type='MultiStepLR', milestones=[100], gamma=0.5, by_epoch=True)]
