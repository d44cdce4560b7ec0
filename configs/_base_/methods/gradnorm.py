# GradNorm, ICML 2018: loss weights that equalise the rates at which the tasks train.
_base_ = './ew.py'
optim_wrapper = dict(aggregator=dict(_delete_=True, type='GradNorm'))
