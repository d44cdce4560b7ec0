# RLW, TMLR 2022: random weights, drawn anew in each step.
_base_ = './ew.py'
optim_wrapper = dict(weighting=dict(type='RLW'))
