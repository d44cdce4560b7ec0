# Aligned-MTL, CVPR 2023: gradients aligned to a condition number of 1.
_base_ = './ew.py'
optim_wrapper = dict(aggregator=dict(_delete_=True, type='AlignedMTL'))
