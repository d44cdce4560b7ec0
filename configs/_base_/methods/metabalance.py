# MetaBalance, WWW 2022: per layer, gradients are brought near to the norm of the first task's, the target.
_base_ = './ew.py'
optim_wrapper = dict(aggregator=dict(_delete_=True, type='MetaBalance', target=0))
