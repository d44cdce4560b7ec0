# STCH, ICML 2024: a smooth maximum of the losses after a warm-up; a loop without epochs needs interval=STEPS.
_base_ = './ew.py'
optim_wrapper = dict(weighting=dict(type='STCH'))
