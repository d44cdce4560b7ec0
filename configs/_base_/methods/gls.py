# GLS, CVPR Workshops 2019: the geometric mean of the losses.
_base_ = './ew.py'
optim_wrapper = dict(weighting=dict(type='GLS'))
