# DB-MTL: moving averages of the log losses' gradients, all of the largest norm; takes the logarithm itself.
_base_ = './ew.py'
optim_wrapper = dict(aggregator=dict(_delete_=True, type='DBMTL'))
