# UW, CVPR 2018: each loss divided by a learned variance.
_base_ = './ew.py'
optim_wrapper = dict(weighting=dict(type='UncertaintyWeighting'))
