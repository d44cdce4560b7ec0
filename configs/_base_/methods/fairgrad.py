# FairGrad, ICML 2024: the alpha-fair combination of the gradients.
_base_ = './ew.py'
optim_wrapper = dict(aggregator=dict(_delete_=True, type='FairGrad'))
