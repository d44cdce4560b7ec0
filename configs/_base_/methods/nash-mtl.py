# Nash-MTL, ICML 2022: the bargaining solution G a = 1 / a.
_base_ = './ew.py'
optim_wrapper = dict(aggregator=dict(_delete_=True, type='NashMTL'))
