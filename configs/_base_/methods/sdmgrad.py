# SDMGrad, NeurIPS 2023: direction-oriented MGDA. One step takes three batches: two for the weights, one for the step.
_base_ = './ew.py'
optim_wrapper = dict(aggregator=dict(_delete_=True, type='SDMGrad'), accumulative_counts=3)
