"""The config of a work directory gives the run again: every value, and the order of what is built in order."""

import math

import pytest
import torch
from mmengine.config import Config
from mmengine.config.lazy import LazyObject

from mmrepmtl.apis import load_config, train
from mmrepmtl.apis.config_writer import config_text
from mmrepmtl.apis.start import prepare_start
from mmrepmtl.registry import MODELS
from tests.engine.quick import QuickModel, quick_config, same, weights

SAVED = ('b', 'a')


@MODELS.register_module()
class OrderedModel(QuickModel):
    """Heads in the order of a dict, as ``MultiTaskModel`` has them, all of one shape."""

    def __init__(self, heads: dict) -> None:
        super().__init__(tuple(heads))


def ordered(work_dir, own_wrapper: bool = False, order=SAVED, **changes) -> Config:
    cfg = quick_config(work_dir, **changes)
    cfg.model = dict(type='OrderedModel', heads={name: dict() for name in order})
    if own_wrapper:
        wrapper = dict(type='MultiTaskOptimWrapper', shared='encoder', tasks=list(order))
    else:
        wrapper = dict(type='OptimWrapper')
    cfg.optim_wrapper = dict(wrapper, optimizer=dict(type='Adam', lr=0.01))
    return cfg


@pytest.mark.parametrize('own_wrapper', [False, True])
@pytest.mark.parametrize('is_sorted', [False, True])
def test_a_run_is_resumed_by_the_config_in_its_folder(tmp_path, own_wrapper, is_sorted, capsys):
    train(ordered(tmp_path / 'whole', own_wrapper))
    for name in ('epoch_2.pth', 'epoch_3.pth'):
        (tmp_path / 'whole' / name).rename(tmp_path / name)
    (config,) = (tmp_path / 'whole').glob('*.py')
    if is_sorted:  # as mmengine writes it
        Config.fromfile(config).dump(str(config))
    cfg = load_config(config, resume=True)
    assert tuple(cfg.model.heads) == (tuple(sorted(SAVED)) if is_sorted else SAVED)
    cfg.experiment_name += f'_{own_wrapper}_{is_sorted}'
    (tmp_path / 'whole/last_checkpoint').write_text('epoch_1.pth')
    capsys.readouterr()
    train(cfg)
    assert same(weights(tmp_path / 'whole/epoch_3.pth'), weights(tmp_path / 'epoch_3.pth'))
    said = "model.heads has the order ['a', 'b'] now and had ['b', 'a']; the checkpoint's goes on"
    assert (said in capsys.readouterr().out) == is_sorted
    assert tuple(Config.fromfile(config).model.heads) == SAVED


def test_the_order_of_tasks_is_that_of_the_checkpoint(tmp_path):
    train(ordered(tmp_path, own_wrapper=True, train_cfg__max_epochs=1))
    cfg = ordered(tmp_path, own_wrapper=True, order=('a', 'b'), resume=True)
    notes = prepare_start(cfg)
    assert "optim_wrapper.tasks is ['a', 'b'] now and was ['b', 'a']; the checkpoint's goes on" in notes
    assert (list(cfg.model.heads), cfg.optim_wrapper.tasks) == (['b', 'a'], ['b', 'a'])


def test_other_heads_keep_their_order(tmp_path):
    train(ordered(tmp_path, train_cfg__max_epochs=1))
    cfg = ordered(tmp_path, order=('a', 'b', 'c'), resume=True)
    assert prepare_start(cfg) == [] and list(cfg.model.heads) == ['a', 'b', 'c']


def test_a_state_that_would_go_to_another_head_is_refused(tmp_path):
    train(quick_config(tmp_path, model__heads=('b', 'a'), train_cfg__max_epochs=1))
    with pytest.raises(
        ValueError, match=r'parameter 2 of the optimizer is heads\.a\.weight now and was heads\.b\.weight'
    ):
        train(quick_config(tmp_path, model__heads=('a', 'b'), resume=True))
    # A checkpoint that does not say the order is taken.
    checkpoint = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)
    torch.save({key: value for key, value in checkpoint.items() if key != 'run_settings'}, tmp_path / 'epoch_1.pth')
    train(quick_config(tmp_path, model__heads=('a', 'b'), resume=True))


CONTENT = dict(
    zebra=dict(b=1, a=[dict(d=2, c=3), (1,), ()], empty={}, none=None),
    numbers=(1e-5, -0.0, float('inf'), -float('inf'), True, 10**20),
    keys={'a-b': 1, 3: dict(x='y'), 'class': 2, 'b': [], 'it\'s "x"': 4, None: 5},
    keyword=dict(**{'class': 1, 'lambda': 2}),
    words='it\'s\n"x" {{ \\',
    long=[dict(type='AVeryLongNameOfATransform', number=number, values=list(range(30))) for number in range(3)],
    data=b'\xff',
    apple=int,
)


def test_every_value_comes_back_in_its_order(tmp_path):
    text = config_text(CONTENT)
    (tmp_path / 'c.py').write_text(text)
    found = Config.fromfile(tmp_path / 'c.py').to_dict()
    assert found == CONTENT and repr(found) == repr(CONTENT)
    assert max(map(len, text.splitlines())) <= 120
    nan = {}
    exec(config_text(dict(a=[float('nan')])), nan)
    assert math.isnan(nan['a'][0])


def test_a_lazy_object_is_written_by_its_name_and_what_no_file_can_hold_is_left_to_mmengine():
    cfg = Config(dict(a=dict(type=LazyObject('torch.optim', 'SGD'))))
    assert config_text(cfg.to_dict()) == "a = dict(type='torch.optim.SGD')\n"
    assert config_text(dict(a=object())) is None and config_text({'a-b': 1}) is None
