# MTAdam, EMNLP 2021: replaces the optimizer of the shared parameters; heads keep the one of the schedule.
_base_ = './ew.py'
optim_wrapper = dict(aggregator=dict(_delete_=True, type='MTAdam'))
