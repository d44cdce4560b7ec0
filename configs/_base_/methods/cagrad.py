# CAGrad, NeurIPS 2021: the largest worst-case improvement within a ball around the mean gradient.
_base_ = './ew.py'
optim_wrapper = dict(aggregator=dict(_delete_=True, type='CAGrad'))
