# PCGrad, NeurIPS 2020: conflicting gradients of the shared parameters are projected.
_base_ = './ew.py'
optim_wrapper = dict(aggregator=dict(_delete_=True, type='PCGrad'))
