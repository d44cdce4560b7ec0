# GradDrop, NeurIPS 2020: per feature position of Z the gradients of one sign, drawn by its share, are kept.
_base_ = './ew.py'
optim_wrapper = dict(aggregator=dict(_delete_=True, type='GradDrop', level='representation'))
