# UPGrad, arXiv 2406.16232: the mean of the gradients, each projected so that it conflicts with none.
_base_ = './ew.py'
optim_wrapper = dict(aggregator=dict(_delete_=True, type='UPGrad'))
