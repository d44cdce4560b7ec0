# IMTL-G, ICLR 2021: equal projections onto all task gradients, at Z.
_base_ = './ew.py'
optim_wrapper = dict(aggregator=dict(_delete_=True, type='IMTLG', level='representation'))
