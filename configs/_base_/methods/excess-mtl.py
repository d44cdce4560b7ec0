# ExcessMTL, ICML 2024: losses weighted by estimated excess risk, for which it needs every task's gradient.
_base_ = './ew.py'
optim_wrapper = dict(aggregator=dict(_delete_=True, type='ExcessMTL'))
