# IMTL, ICLR 2021, the hybrid: learned scales of the losses (IMTL-L) and equal projections of their gradients (IMTL-G).
_base_ = './ew.py'
optim_wrapper = dict(weighting=dict(type='IMTLL'), aggregator=dict(_delete_=True, type='IMTLG', level='representation'))
