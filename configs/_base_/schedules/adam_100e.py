# The paper's schedule on Office-31 and Office-Home: 100 epochs at a constant learning rate.
_optimizer = dict(type='Adam', lr=1e-4, weight_decay=1e-5)  # a recipe takes it as _base_._optimizer
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=100, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
param_scheduler = []
