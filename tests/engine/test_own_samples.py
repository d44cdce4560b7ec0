"""Tasks that do not share samples: the encoder runs once per task, or once on all of them with the rows of each."""

import pytest
import torch

from tests.engine import reference
from tests.engine.harness import REP, run, wrap
from tests.engine.toy import OwnSamples, make_batch, make_model, max_difference

SETTINGS = {
    'ew': dict(),
    'rep-mtl': dict(loss_transform='log', regularizers=[REP]),
    'pcgrad': dict(aggregator=dict(type='PCGrad')),
    'pcgrad-rep-mtl': dict(aggregator=dict(type='PCGrad'), loss_transform='log', regularizers=[REP]),
}


def train(mode, settings, steps=3):
    model = make_model(cls=OwnSamples)
    model.encoder_forward = mode
    logs = run(model, wrap(model, **settings), [make_batch(9, seed) for seed in range(steps)])
    return model, logs


@pytest.mark.parametrize('name', SETTINGS)
def test_one_call_per_task_equals_one_call_on_all(name):
    per_task, logs = train('per_task', SETTINGS[name])
    concat, other_logs = train('concat', SETTINGS[name])
    assert max_difference(per_task, concat) < 1e-10
    assert max_difference(per_task, make_model(cls=OwnSamples)) > 1e-3
    assert logs[-1]['loss'] == pytest.approx(other_logs[-1]['loss'], rel=1e-9)


def test_the_penalty_pairs_the_samples_of_the_tasks_by_position():
    """The literal formulas on the saliencies of each task at its own first two samples."""
    model = make_model(cls=OwnSamples)
    batch = make_batch(9)
    log = run(model, wrap(model, loss_transform='log', regularizers=[REP]), [batch])[0]
    other = make_model(cls=OwnSamples)
    captured = []
    other.encoder.register_forward_hook(lambda *call: captured.append(call[2]))
    losses = other.losses(**batch)
    saliency = [
        torch.autograd.grad(loss, z, retain_graph=True)[0][:2] / loss.detach()
        for loss, z in zip(losses.values(), captured, strict=True)
    ]
    z = torch.zeros_like(saliency[0], requires_grad=True)
    linear = {task: (z * s).sum() for task, s in zip(losses, saliency, strict=True)}
    expected = sum(loss.log() for loss in losses.values()) + reference.literal_penalty(linear, z, 0.5, 0.7, log=False)
    assert log['loss'] == pytest.approx(float(expected), rel=1e-6)


def test_gradients_at_z_cannot_be_combined_where_nothing_is_shared_there():
    model = make_model(cls=OwnSamples)
    with pytest.raises(ValueError, match="PCGrad at level='representation'.*encoder_forward='per_task'"):
        run(model, wrap(model, aggregator=dict(type='PCGrad', level='representation')), [make_batch(9)])


def test_a_call_too_many_or_too_few_is_an_error():
    class Twice(OwnSamples):
        def losses(self, inputs, a, b, c):
            self.encoder(inputs)
            return super().losses(inputs, a, b, c)

    model = make_model(cls=Twice)
    with pytest.raises(RuntimeError, match="'encoder' ran more than once for each of the 3 tasks"):
        run(model, wrap(model), [make_batch(9)])

    class Joint(OwnSamples):
        encoder_forward = 'per_task'

        def losses(self, inputs, a, b, c):
            self.encoder_forward = 'concat'
            return super().losses(inputs, a, b, c)

    model = make_model(cls=Joint)
    with pytest.raises(RuntimeError, match="'encoder' did not fire for every task"):
        run(model, wrap(model), [make_batch(9)])
