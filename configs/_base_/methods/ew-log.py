# Equal weighting of log losses: what Rep-MTL adds its penalty to, and its fair yardstick.
_base_ = './ew.py'
optim_wrapper = dict(loss_transform='log')
