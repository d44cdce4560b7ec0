"""Models of every kind: foreign loss keys, unclaimed losses, missing labels, frozen encoders, mappings for Z."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from tests.engine import reference
from tests.engine.harness import REP, run, wrap
from tests.engine.toy import ToyModel, make_batch, make_model, max_difference


class Extra(ToyModel):
    def forward(self, inputs, a, b, c, mode='loss'):
        captured = []
        hook = self.encoder.register_forward_hook(lambda *call: captured.append(call[2]))
        losses = super().forward(inputs, a, b, c)
        hook.remove()
        return {**losses, 'aux.loss_x': (captured[0] ** 2).mean()}


class PrefixModel(ToyModel):
    """Speaks mmseg's language: several loss keys per task and a non-loss entry."""

    def forward(self, inputs, a, b, c, mode='loss'):
        z = self.encoder(inputs)
        out = {task: module(z) for task, module in self.heads.items()}
        return {
            'decode.loss_ce': torch.nn.functional.cross_entropy(out['a'], a),
            'decode.loss_extra': [(out['a'] ** 2).mean(), (out['a'] ** 4).mean()],
            'decode.acc_seg': torch.tensor(1.0),
            'aux.loss_b': (out['b'] - b).abs(),
            'aux2.loss': ((out['c'] - c) ** 2).mean(),
        }


def test_a_foreign_model_is_trained_by_prefixes():
    model, other = make_model(cls=PrefixModel), make_model(cls=PrefixModel)
    tasks = dict(a='decode.', b='aux.', c='aux2.')
    log = run(model, wrap(model, tasks=tasks, loss_transform='log', momentum=0), [make_batch()])[0]
    out = other(**make_batch())
    total = (
        (out['decode.loss_ce'] + sum(out['decode.loss_extra'])).log()
        + out['aux.loss_b'].mean().log()
        + out['aux2.loss'].log()
    )
    total.backward()
    torch.optim.SGD(other.parameters(), lr=0.1).step()
    assert max_difference(model, other) < 1e-10
    assert log['loss'] == pytest.approx(float(total.detach())) and log['decode.acc_seg'] == 1
    assert 'raw/decode.extra' in log


def test_unclaimed_losses_are_listed_or_added():
    model = make_model(cls=Extra)
    with pytest.raises(ValueError, match=r"no task claims the losses \['aux.loss_x'\]"):
        run(model, wrap(model), [make_batch()])
    for aggregator in (None, dict(type='PCGrad')):
        model, other = make_model(cls=Extra), make_model(cls=Extra)
        run(
            model,
            wrap(model, extra_losses='add', loss_transform='log', aggregator=aggregator, momentum=0),
            [make_batch()],
        )
        losses = other(**make_batch())
        extra = losses.pop('aux.loss_x')
        if aggregator is None:
            (sum(loss.log() for loss in losses.values()) + extra).backward()
            torch.optim.SGD(other.parameters(), lr=0.1).step()
            assert max_difference(model, other) < 1e-10
        else:
            plain = make_model(cls=Extra)
            reference.train(plain, [[make_batch()]], log=True, use_pcgrad=True, momentum=0)
            for p, g in zip(
                plain.encoder.parameters(), torch.autograd.grad(extra, list(other.encoder.parameters())), strict=True
            ):
                p.data -= 0.1 * g
            assert max_difference(model, plain) < 1e-10


def test_a_frozen_encoder_under_an_aggregator_trains_the_heads():
    model = make_model()
    model.encoder.requires_grad_(False)
    before = model.heads['a'][0].weight.clone()
    run(model, wrap(model, aggregator=dict(type='PCGrad'), regularizers=[REP]), [make_batch()])
    assert not torch.equal(model.heads['a'][0].weight, before)


class Flagged(ToyModel):
    """Says which tasks are labelled, as this package's own models do."""

    unlabelled: tuple = ()

    def forward(self, inputs, a, b, c, mode='loss'):
        losses = super().forward(inputs, a, b, c)
        for task in self.unlabelled:
            losses[f'{task}.loss'] = losses[f'{task}.loss'] * 0
        return losses | {f'{task}.labelled': torch.tensor(float(task not in self.unlabelled)) for task in self.tasks}


def test_a_task_without_labels_is_left_out_before_the_log():
    model, other = make_model(cls=Flagged), make_model()
    model.unlabelled = ('b',)
    log = run(model, wrap(model, loss_transform='log', regularizers=[REP], momentum=0), [make_batch()])[0]
    losses, z = reference.losses_and_z(other, make_batch())
    losses.pop('b')
    (sum(loss.log() for loss in losses.values()) + reference.literal_penalty(losses, z, 0.5, 0.7)).backward()
    torch.optim.SGD([p for p in other.parameters() if p.grad is not None], lr=0.1).step()
    assert max_difference(model, other) < 1e-10
    assert log['raw/b'] == 0 and 'rep_mtl/share/b' not in log


def test_a_batch_without_any_label_counts_as_a_step():
    model = make_model(cls=Flagged)
    wrapper = wrap(model, loss_transform='log', regularizers=[REP])
    for i in range(4):
        model.unlabelled = ToyModel.tasks if i % 2 else ()
        run(model, wrapper, [make_batch(seed=i)])
    assert wrapper.regularizers[0].num_steps == 4
    before = [p.clone() for p in model.parameters()]
    stateless = wrap(model, loss_transform='log', regularizers=[REP])
    model.unlabelled = ToyModel.tasks
    run(model, stateless, [make_batch()])
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize('kind', [dict, OrderedDict])
def test_an_encoder_that_returns_a_mapping(kind):

    class Named(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return kind(out=self.inner(x))

    class MappingModel(ToyModel):
        def __init__(self):
            super().__init__()
            self.encoder = Named(self.encoder)

        def losses(self, inputs, a, b, c):
            features = self.encoder(inputs)
            assert type(features) is kind
            z = features['out']
            return dict(
                a=torch.nn.functional.cross_entropy(self.heads['a'](z), a),
                b=(self.heads['b'](z) - b).abs().mean(),
                c=((self.heads['c'](z) - c) ** 2).mean(),
            )

    model, other = make_model(cls=MappingModel), make_model()
    settings = dict(loss_transform='log', regularizers=[REP])
    logs = [run(m, wrap(m, **settings), [make_batch()])[0] for m in (model, other)]
    assert logs[0] == pytest.approx(logs[1])
