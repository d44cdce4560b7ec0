# IGBv2, UAI 2023: an agent learns the weights of the log losses; a loop without epochs needs interval=STEPS.
_base_ = './ew.py'
optim_wrapper = dict(weighting=dict(type='IGBv2'))
