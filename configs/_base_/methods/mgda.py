# MGDA, NeurIPS 2018: the shortest convex combination of the task gradients.
_base_ = './ew.py'
optim_wrapper = dict(aggregator=dict(_delete_=True, type='MGDA'))
