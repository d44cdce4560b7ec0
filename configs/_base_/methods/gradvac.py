# GradVac, ICLR 2021: the cosine of each pair of gradients is raised to its moving average.
_base_ = './ew.py'
optim_wrapper = dict(aggregator=dict(_delete_=True, type='GradVac'))
