"""The trainer's demands on a regulariser, and its words about one that is not as declared."""

import dataclasses

import pytest
import torch
from torch import nn

from mmrepmtl.engine import MultiTaskOptimWrapper
from mmrepmtl.methods.regularizer import PLAIN, Regularizer
from tests.engine.toy import OwnSamples, ToyModel, make_batch, make_model


class Told(Regularizer):
    """Remembers what it was told; has no effect."""

    def __init__(self, names=(), positive=False):
        super().__init__()
        self.contexts, self.losses, self.names, self.positive = [], [], names, positive

    @property
    def needs_positive_losses(self):
        return self.positive

    @property
    def diagnostics(self):
        return dict.fromkeys(self.names, 2.0)

    def forward(self, losses, representation, context=PLAIN):
        self.contexts.append(context)
        self.losses.append({task: float(loss.detach()) for task, loss in losses.items()})
        return dict(loss_none=0 * sum(losses.values()))


class Silent(Told):
    """Returns no term."""

    def forward(self, losses, representation, context=PLAIN):
        return {}


def run(regularizer, batches, cls=ToyModel, dtype=torch.float64, **settings) -> list[dict]:
    model = make_model(cls=cls, dtype=dtype)
    wrapper = MultiTaskOptimWrapper(
        torch.optim.SGD(model.parameters(), lr=0.0), shared='encoder', regularizers=[regularizer], **settings
    )
    return [model.train_step(batch, wrapper) for batch in batches]


def test_the_context_says_what_is_known_of_the_step():
    told, weighting = Told(), dict(type='UncertaintyWeighting')
    run(told, [make_batch()] * 4, weighting=weighting, accumulative_counts=2, diagnostics_interval=3)
    assert [context.iteration for context in told.contexts] == [0, 1, 2, 3]
    assert [context.measure_gradient for context in told.contexts] == [True, False, False, True]
    assert {(c.scale, c.backward_scale, c.slices, c.process_group, c.advance) for c in told.contexts} == {
        (1.0, 0.5, None, None, False)
    }
    with pytest.raises(dataclasses.FrozenInstanceError):
        told.contexts[0].scale = 2.0


@pytest.mark.parametrize('transform', [None, 'log'])
def test_the_weights_are_the_derivative_of_the_objective_by_each_loss(transform):
    told = Told()
    log = run(told, [make_batch()], loss_transform=transform, weighting=dict(type='RLW'))[0]
    losses = list(told.losses[0].values())
    wanted = [float(log[f'weight/{t}']) / (loss if transform else 1) for t, loss in zip('abc', losses, strict=True)]
    assert told.contexts[0].task_weights.tolist() == pytest.approx(wanted, rel=1e-12)


def test_fp16_tells_its_scale_and_tasks_with_samples_of_their_own_tell_their_rows():
    told = Told()
    run(told, [make_batch(dtype=torch.float32)], dtype=torch.float32, precision='fp16', loss_scale=dict(init_scale=64))
    assert told.contexts[0].scale == 64.0
    model = make_model(cls=OwnSamples)
    model.encoder_forward = 'concat'
    wrapper = MultiTaskOptimWrapper(torch.optim.SGD(model.parameters(), lr=0.0), shared='encoder', regularizers=[told])
    model.train_step(make_batch(9), wrapper)
    assert told.contexts[1].slices == dict(a=slice(0, 3), b=slice(3, 7), c=slice(7, 9))


def test_under_an_aggregator_the_trainer_measures_the_gradient_itself():
    told = Told()
    run(told, [make_batch()], aggregator=dict(type='PCGrad'), diagnostics_interval=1)
    assert not told.contexts[0].measure_gradient


def test_diagnostics_are_logged_every_interval_and_declared_ones_always():
    told = Told(names=('often', 'rare'))
    told.name, told.always_logged = 'told', ('often',)
    logs = run(told, [make_batch()] * 3, diagnostics_interval=2)
    shown = [{key for key in log if key.startswith('told/')} for log in logs]
    assert shown == [{'told/often', 'told/rare'}, {'told/often'}, {'told/often', 'told/rare'}]


@pytest.mark.parametrize('aggregator', [None, dict(type='MGDA'), dict(type='MGDA', level='representation')])
def test_a_regulariser_that_returns_no_term_adds_nothing(aggregator):
    silent = run(Silent(), [make_batch()], aggregator=aggregator)[0]
    told = run(Told(), [make_batch()], aggregator=aggregator)[0]
    assert float(silent['penalty']) == 0
    assert float(silent['loss'].detach()) == float(told['loss'].detach()) > 0


class NoLoss(ToyModel):
    """The loss of task b is exactly 0."""

    def forward(self, inputs, a, b, c, mode='loss'):
        found = super().forward(inputs, a, b, c)
        return found | {'b.loss': found['b.loss'] * 0}


@pytest.mark.parametrize('positive', [False, True])
def test_a_loss_of_zero_is_left_out_where_positive_ones_are_needed(positive):
    told = Told(positive=positive)
    run(told, [make_batch()], cls=NoLoss)
    assert ('b' in told.losses[0]) != positive


def test_a_diagnostic_that_mmengine_would_take_for_a_loss_is_refused():
    with pytest.raises(ValueError, match="Told names a diagnostic 'old_loss'.*rename it"):
        run(Told(names=['old_loss']), [make_batch()])


def test_what_is_no_regulariser_is_refused():
    with pytest.raises(ValueError, match='the regulariser Linear must be a subclass of'):
        run(nn.Linear(2, 2), [make_batch()])
