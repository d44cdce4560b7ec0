# GO4Align, NeurIPS 2024: tasks with similar risk indicators share a weight.
_base_ = './ew.py'
optim_wrapper = dict(weighting=dict(type='GO4Align'))
