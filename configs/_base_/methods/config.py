# ConFIG, ICLR 2025: the direction of equal cosine to all task gradients.
_base_ = './ew.py'
optim_wrapper = dict(aggregator=dict(_delete_=True, type='ConFIG'))
