# MoCo, ICLR 2023: moving averages of the gradients, weighted towards their minimum-norm combination.
_base_ = './ew.py'
optim_wrapper = dict(aggregator=dict(_delete_=True, type='MoCo'))
