# DWA, CVPR 2019: tasks whose loss falls more slowly weigh more; a loop without epochs needs interval=STEPS.
_base_ = './ew.py'
optim_wrapper = dict(weighting=dict(type='DWA'))
