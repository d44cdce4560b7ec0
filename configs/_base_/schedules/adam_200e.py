# The paper's schedule on NYUv2 and Cityscapes: 200 epochs, learning rate halved after 100.
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=200, val_interval=10)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
param_scheduler = [dict(type='MultiStepLR', milestones=[100], gamma=0.5, by_epoch=True)]
