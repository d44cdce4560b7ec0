# DualProj: the mean gradient, projected so that it conflicts with no gradient (GEM, NeurIPS 2017).
_base_ = './ew.py'
optim_wrapper = dict(aggregator=dict(_delete_=True, type='DualProj'))
