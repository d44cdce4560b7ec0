# IMTL-L, ICLR 2021: learned scales make all scaled losses equal.
_base_ = './ew.py'
optim_wrapper = dict(weighting=dict(type='IMTLL'))
