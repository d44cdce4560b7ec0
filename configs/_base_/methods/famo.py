# FAMO, NeurIPS 2023: all losses fall at the same relative rate; one more forward pass per step.
_base_ = './ew.py'
optim_wrapper = dict(weighting=dict(type='FAMO'))
