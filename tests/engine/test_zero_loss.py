"""A loss of exactly 0, from a model that does not tell which tasks have no label, and losses below 0."""

import pytest
import torch

from mmrepmtl.engine import task_losses
from mmrepmtl.engine.methods import build_method
from mmrepmtl.registry import AGGREGATORS, WEIGHTINGS
from tests.engine.harness import REP, run
from tests.engine.harness import wrap as plain_wrap
from tests.engine.overlays import METHODS, settings_of, window, wrap
from tests.engine.toy import Partial, ToyModel, make_batch, make_model, max_difference


class Silent(Partial):
    """Zeros that are connected to the graph, and no flags."""

    def forward(self, inputs, a, b, c, mode='loss'):
        return {key: value for key, value in super().forward(inputs, a, b, c, mode).items() if 'labelled' not in key}


class Constant(Silent):
    """Zeros without a graph."""

    def forward(self, inputs, a, b, c, mode='loss'):
        found = super().forward(inputs, a, b, c, mode)
        return found | {f'{task}.loss': torch.zeros((), dtype=inputs.dtype) for task in self.missing}


class Negative(ToyModel):
    def losses(self, inputs, a, b, c):
        losses = super().losses(inputs, a, b, c)
        return dict(losses, b=losses['b'] - 100)


def needs_positive(name) -> bool:
    settings = settings_of(name)
    weighting, aggregator = (
        build_method(settings['weighting'], WEIGHTINGS),
        build_method(settings['aggregator'], AGGREGATORS),
    )
    own = any(m is not None and m.loss_transform == 'own' for m in (weighting, aggregator))
    return own or settings['loss_transform'] == 'log' or bool(settings['regularizers'])


def train(cls, name, **changes):
    """Steps with all labels, then some in which tasks have none, then again."""
    model = make_model(cls=cls)
    wrapper = wrap(model, name, **changes)
    batches = [make_batch(seed=i) for i in range(2 * window(name))]
    for missing in ('', 'b', '', 'ac', 'abc', ''):
        model.missing = tuple(missing)
        run(model, wrapper, batches)
    return model


@pytest.mark.parametrize('name', [name for name in METHODS if needs_positive(name)])
def test_an_exact_zero_is_a_task_without_a_label(name):
    """Bit for bit the run of a model that tells."""
    found, wanted = train(Silent, name), train(Partial, name)
    assert max_difference(found, wanted) == 0


@pytest.mark.parametrize('name', METHODS)
def test_zeros_without_a_graph_and_without_a_flag_are_survived(name):
    model = train(Constant, name, regularizers=[REP])
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize('name', METHODS)
def test_zero_loss_error_names_the_task_where_the_loss_must_be_positive(name):
    model = make_model(cls=Silent)
    model.missing = ('b',)
    batches = [make_batch(seed=i) for i in range(window(name))]
    wrapper = wrap(model, name, zero_loss='error')
    settings = settings_of(name)
    own = build_method(settings['weighting'], WEIGHTINGS).loss_transform == 'own' and name != 'uw'
    if own or settings['loss_transform'] == 'log' or settings['regularizers']:
        with pytest.raises(ValueError, match="task 'b'.* is 0"):
            run(model, wrapper, batches)
    else:  # an aggregator sees a row of zeros
        run(model, wrapper, batches)
        assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize('name', METHODS)
def test_a_negative_loss_is_trained_on_or_refused_by_the_name_of_the_task(name):
    model = make_model(cls=Negative)
    batches = [make_batch(seed=i) for i in range(2 * window(name))]
    if needs_positive(name) and name != 'uw':
        with pytest.raises(ValueError, match="(task 'b' is -|'b': -).*positive"):
            run(model, wrap(model, name), batches)
    else:
        before = model.heads['b'][0].weight.clone()
        run(model, wrap(model, name), batches)
        assert all(torch.isfinite(p).all() for p in model.parameters())
        assert not torch.equal(before, model.heads['b'][0].weight)


def test_elsewhere_a_zero_is_a_loss_like_any_other():
    class ThroughZero(ToyModel):
        """A loss that is 0 and has a gradient."""

        def losses(self, inputs, a, b, c):
            losses = super().losses(inputs, a, b, c)
            return dict(losses, b=losses['b'] - losses['b'].detach())

    for name in ('ew', 'pcgrad'):
        model, start = make_model(cls=ThroughZero), make_model(cls=ThroughZero)
        run(model, wrap(model, name), [make_batch()])
        assert max_difference(model.heads['b'], start.heads['b']) > 1e-4


def test_the_log_says_it_once(monkeypatch):
    said = []
    monkeypatch.setattr(task_losses, 'print_log', lambda message, **kwargs: said.append(message))
    model = make_model(cls=Silent)
    model.missing = ('b',)
    run(model, plain_wrap(model, loss_transform='log'), [make_batch(), make_batch()])
    assert len(said) == 1 and "task 'b'" in said[0] and 'zero_loss' in said[0]


def test_checkpoints_that_are_older_than_the_setting_resume():
    import json

    state = plain_wrap(make_model()).state_dict()
    signature = json.loads(state['multi_task']['signature'])
    assert signature.pop('zero_loss') == 'unlabelled'
    signature.pop('optimizers')
    state['multi_task']['signature'] = json.dumps(signature)
    for mode in ('unlabelled', 'error'):
        plain_wrap(make_model(), zero_loss=mode).load_state_dict(dict(state))
    with pytest.raises(RuntimeError, match='zero_loss: unlabelled in the checkpoint, error now'):
        plain_wrap(make_model(), zero_loss='error').load_state_dict(plain_wrap(make_model()).state_dict())
