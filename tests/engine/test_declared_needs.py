"""The engine asks a method what it needs; here methods that need everything there is, and record what they got."""

import pytest
import torch
from mmengine.logging import MessageHub
from torch import nn

from mmrepmtl.engine import MultiTaskOptimWrapper
from mmrepmtl.methods.aggregation import Aggregator, GramianAggregator
from mmrepmtl.methods.regularizer import Regularizer
from mmrepmtl.methods.weighting import Weighting
from tests.engine.harness import REP, run, wrap
from tests.engine.toy import ToyModel, make_batch, make_model, max_difference


def rows_of(model, batch):
    """Gradients of the encoder (T, P) and the losses (T,), by hand."""
    losses = model.losses(**batch)
    parameters = list(model.encoder.parameters())
    rows = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses.values()]
    return (
        torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]),
        torch.stack([loss.detach() for loss in losses.values()]),
    )


class ThreeBatches(Aggregator):
    levels, num_batches = ('parameter',), 3

    def forward(self, gradients_TP, losses_T):
        self.seen, self.losses_T = gradients_TP.clone(), losses_T
        return gradients_TP[2].sum(0), torch.ones(gradients_TP.shape[1], dtype=losses_T.dtype)


@pytest.mark.parametrize('counts', [3, 6])
def test_independent_batches_are_the_micro_batches_of_a_window(counts):
    model = make_model()
    aggregator = ThreeBatches()
    batches = [make_batch(seed=i) for i in range(counts)]
    run(model, wrap(model, aggregator=aggregator, accumulative_counts=counts), batches)
    found = [rows_of(make_model(), batch) for batch in batches]
    for i in range(3):
        expected = torch.stack([rows for rows, _ in found[i::3]]).mean(0)
        assert torch.allclose(aggregator.seen[i], expected, rtol=1e-9)
    assert torch.allclose(aggregator.losses_T, torch.stack([losses for _, losses in found]).mean(0))


def test_a_last_window_that_is_too_short_repeats_its_first_batch():
    model = make_model()
    aggregator = ThreeBatches()
    wrapper = wrap(model, aggregator=aggregator, accumulative_counts=3, lr=0.0)
    wrapper.initialize_count_status(model, 0, 4)
    run(model, wrapper, [make_batch(seed=i) for i in range(4)])
    assert torch.allclose(aggregator.seen, rows_of(make_model(), make_batch(seed=3))[0].expand(3, -1, -1))


def test_independent_batches_need_an_accumulation_window():
    with pytest.raises(ValueError, match='accumulative_counts=4 must be a multiple of 3'):
        wrap(make_model(), aggregator=ThreeBatches(), accumulative_counts=4)


class Sign(Aggregator):
    """An optimizer: the sign of the sum of the rows and of the penalty's gradient."""

    levels, returns, has_weights = ('parameter',), 'update', False

    def forward(self, gradients_TP, losses_T, extra_P=None):
        self.extra_P = extra_P
        total = gradients_TP.sum(0) if extra_P is None else gradients_TP.sum(0) + extra_P
        return total.sign(), None


@pytest.mark.parametrize('precision', ['fp32', 'fp16'])
def test_an_optimizer_does_not_pass_through_the_optimizer_again(precision):
    dtype = torch.float64 if precision == 'fp32' else torch.float32
    model, start = make_model(dtype=dtype), make_model(dtype=dtype)
    optimizer = torch.optim.Adam(
        [dict(params=model.encoder.parameters(), lr=0.01), dict(params=model.heads.parameters(), lr=0.02)],
        weight_decay=0.1,
    )
    wrapper = MultiTaskOptimWrapper(optimizer, 'encoder', aggregator=Sign(), precision=precision)
    run(model, wrapper, [make_batch(dtype=dtype)])
    rows, _ = rows_of(start, make_batch(dtype=dtype))
    flat = nn.utils.parameters_to_vector(start.encoder.parameters())
    expected = flat * (1 - 0.01 * 0.1) - 0.01 * rows.sum(0).sign()
    got = nn.utils.parameters_to_vector(model.encoder.parameters())
    assert ((got - expected).abs() < 1e-7).float().mean() > (0.99 if precision == 'fp32' else 0.95)
    assert all(p not in optimizer.state for p in model.encoder.parameters())
    assert all(p in optimizer.state for p in model.heads.parameters())


def test_the_penalty_reaches_an_optimizer_as_a_gradient_of_its_own():
    model, aggregator = make_model(), Sign()
    run(model, wrap(model, aggregator=aggregator, regularizers=[REP]), [make_batch()])
    assert aggregator.extra_P is not None and aggregator.extra_P.abs().sum() > 0
    with pytest.raises(ValueError, match='Sign is an optimizer; there is no combined gradient that clip_grad'):
        wrap(model, aggregator=Sign(), clip_grad=dict(max_norm=1.0))


class Fixed(GramianAggregator):
    def weights(self, gramian_TT, losses_T):
        return torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)


@pytest.mark.parametrize('level', ['parameter', 'representation'])
@pytest.mark.parametrize('weight_heads', [False, True])
@pytest.mark.parametrize('accumulation', [1, 2])
def test_heads_are_weighted_where_the_method_says_so(level, weight_heads, accumulation):
    model, other = make_model(), make_model()
    batches = [make_batch(seed=i) for i in range(accumulation)]
    aggregator = Fixed(level=level, weight_heads=weight_heads)
    run(model, wrap(model, aggregator=aggregator, accumulative_counts=accumulation, momentum=0.0), batches)
    weights = dict(a=0.5, b=2.0, c=3.0)
    for batch in batches:
        losses = other.losses(**batch)
        whole = sum(weights[task] * loss for task, loss in losses.items()) / accumulation
        whole.backward(inputs=list(other.encoder.parameters()), retain_graph=True)
        heads = whole if weight_heads else sum(losses.values()) / accumulation
        heads.backward(inputs=list(other.heads.parameters()))
    torch.optim.SGD(other.parameters(), lr=0.1).step()
    assert max_difference(model, other) < 1e-10


class LogHeads(Fixed):
    loss_transform = 'own'

    def head_weights(self, weights_T, losses_T):
        return 1 / losses_T


def test_a_method_may_scale_the_heads_apart_from_its_weights():
    model, other = make_model(), make_model()
    batch = make_batch()
    run(model, wrap(model, aggregator=LogHeads(), momentum=0.0), [batch])
    losses = other.losses(**batch)
    sum(loss.log() for loss in losses.values()).backward(inputs=list(other.heads.parameters()))
    torch.optim.SGD(other.heads.parameters(), lr=0.1).step()
    assert max_difference(model.heads, other.heads) < 1e-10
    with pytest.raises(ValueError, match='LogHeads handles the scale of the losses itself'):
        wrap(model, aggregator=LogHeads(), loss_transform='log')


def test_weights_that_do_not_exist_cannot_weight_the_heads():
    with pytest.raises(ValueError, match='Sign: weight_heads=True needs one weight per task'):
        Sign(weight_heads=True)


class Largest(Aggregator):
    """At Z: keeps the gradient of the task whose sum over the whole batch is largest, position by position."""

    levels, has_weights = ('representation',), False

    def __init__(self):
        super().__init__(level='representation')

    def at_representation(self, gradients_TB, representation_B, sum_over_ranks):
        self.shapes = gradients_TB.shape, representation_B.shape
        sums = sum_over_ranks(gradients_TB.sum(1))
        return gradients_TB * (sums == sums.max(0).values).unsqueeze(1)


class Doubled(Largest):
    def at_representation(self, gradients_TB, representation_B, sum_over_ranks):
        super().at_representation(gradients_TB, representation_B, sum_over_ranks)
        return 2 * gradients_TB.sum(0)


def test_a_method_may_work_on_the_gradients_at_z():
    model, other, aggregator = make_model(), make_model(), Doubled()
    batch = make_batch()
    run(model, wrap(model, aggregator=aggregator, momentum=0.0), [batch])
    assert aggregator.shapes == ((3, 4, 4, 6, 5), (4, 4, 6, 5))
    total = sum(other.losses(**batch).values())
    (2 * total).backward(inputs=list(other.encoder.parameters()), retain_graph=True)
    total.backward(inputs=list(other.heads.parameters()))
    torch.optim.SGD(other.parameters(), lr=0.1).step()
    assert max_difference(model, other) < 1e-10


class Keeps(Aggregator):
    levels, keeps_gradients = ('parameter',), True

    def setup(self, num_tasks, sizes=None):
        self.sizes = sizes

    def forward(self, gradients_TP, losses_T):
        return gradients_TP.sum(0), torch.ones_like(losses_T)


class Growing(ToyModel):
    """Uses the second half of the encoder only in some batches."""

    def losses(self, inputs, a, b, c):
        for p in self.encoder[2].parameters():
            p.requires_grad_(bool(inputs.flatten()[0] != 7))
        return super().losses(inputs, a, b, c)


def test_the_layout_of_the_shared_parameters_is_told_and_fixed():
    model, aggregator = make_model(), Keeps()
    run(model, wrap(model, aggregator=aggregator), [make_batch()])
    assert aggregator.sizes == [p.numel() for p in model.encoder.parameters()]
    first = make_batch()
    first['inputs'].view(-1)[0] = 7
    model = make_model(cls=Growing)
    with pytest.raises(ValueError, match='Keeps keeps state for each shared parameter, and 2 parameters'):
        run(model, wrap(model, aggregator=Keeps()), [first, make_batch()])
    model = make_model(cls=Growing)
    run(model, wrap(model, aggregator=Fixed()), [make_batch(), first, make_batch()])  # others take what there is


class Looks(Weighting):
    second_look = True

    def __init__(self):
        super().__init__()
        self.before, self.after, self.labelled = [], [], []

    def forward(self, losses_T, labelled_T=None, advance=True):
        self.before.append(losses_T.detach().clone())
        return losses_T.sum()

    def after_step(self, losses_T, labelled_T=None):
        self.after.append(losses_T)
        self.labelled.append(labelled_T)


class Noisy(ToyModel):
    """Dropout and BatchNorm: random numbers and running statistics that a second look must leave alone."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(), nn.Dropout(0.5))


@pytest.mark.parametrize('accumulation', [1, 2])
def test_a_second_look_sees_the_same_batches_after_the_step(accumulation):
    model, weighting = make_model(), Looks()
    batches = [make_batch(seed=i) for i in range(accumulation)]
    run(model, wrap(model, weighting=weighting, accumulative_counts=accumulation), batches)
    expected = torch.stack([torch.stack(list(model.losses(**batch).values())) for batch in batches]).mean(0)
    assert len(weighting.after) == 1 and torch.allclose(weighting.after[0], expected)
    assert weighting.labelled[0].tolist() == [True] * 3


def test_a_second_look_changes_nothing_but_what_was_learned():
    batches = [make_batch(seed=i) for i in range(3)]
    model, other, weighting = make_model(cls=Noisy), make_model(cls=Noisy), Looks()
    torch.manual_seed(3)
    run(model, wrap(model, weighting=weighting), batches)
    torch.manual_seed(3)
    run(other, wrap(other), batches)
    assert all(torch.equal(p, q) for p, q in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    still = Looks()
    run(model, wrap(model, weighting=still, lr=0.0), batches)
    # The same dropout masks: without a step the losses are the same.
    assert all(torch.equal(p, q) for p, q in zip(still.before, still.after, strict=True))


def test_no_second_look_after_a_skipped_step():
    model, weighting = make_model(), Looks()
    bad = dict(make_batch(), c=make_batch()['c'] * float('nan'))
    run(model, wrap(model, weighting=weighting, on_nonfinite='skip'), [make_batch(), bad, make_batch()])
    assert len(weighting.after) == 2 and len(weighting.before) == 2


class Epochs(Weighting):
    per_epoch = True

    def __init__(self):
        super().__init__()
        self.ended = 0

    def forward(self, losses_T, labelled_T=None, advance=True):
        return losses_T.sum()

    def end_epoch(self):
        self.ended += 1


@pytest.fixture
def hub():
    hub = MessageHub.get_current_instance()
    before = dict(hub.runtime_info)
    yield hub
    hub.runtime_info.clear()
    hub.runtime_info.update(before)


def test_the_end_of_an_epoch_is_told_also_across_a_resume(hub):
    model, weighting = make_model(), Epochs()
    wrapper = wrap(model, weighting=weighting)
    hub.update_info('max_epochs', 3)
    for epoch in (0, 0, 1, 1):
        hub.update_info('epoch', epoch)
        run(model, wrapper, [make_batch()])
    assert weighting.ended == 1
    resumed = wrap(model, weighting=Epochs())
    resumed.load_state_dict(wrapper.state_dict())
    hub.update_info('epoch', 2)
    run(model, resumed, [make_batch()])
    assert resumed.weighting.ended == 1


@pytest.mark.parametrize('info, what', [(dict(), 'none'), (dict(epoch=0, max_epochs=1), 'only one')])
def test_a_loop_without_epochs_is_refused(hub, info, what):
    hub.runtime_info.clear()
    hub.runtime_info.update(info)
    model = make_model()
    with pytest.raises(ValueError, match=f'Epochs averages over epochs, and this loop has {what}; give it interval'):
        run(model, wrap(model, weighting=Epochs()), [make_batch()])


class Steps(Weighting):
    """Notes what it is told, in the order of the calls."""

    def __init__(self):
        super().__init__()
        self.told = []

    def forward(self, losses_T, labelled_T=None, advance=True):
        self.told.append('advance' if advance else 'forward')
        return losses_T.sum()

    def end_step(self):
        self.told.append('end')

    def drop_window(self):
        self.told.append('drop')


class StepsOfPenalty(Regularizer):
    def __init__(self):
        super().__init__()
        self.steps = 0

    def forward(self, losses, representation, context):
        assert not context.advance
        return dict(loss_none=0 * sum(losses.values()))

    def end_step(self):
        self.steps += 1


def test_methods_are_told_when_a_step_was_made_and_when_it_was_not():
    model, weighting, regularizer = make_model(), Steps(), StepsOfPenalty()
    wrapper = wrap(model, weighting=weighting, regularizers=[regularizer], accumulative_counts=3, on_nonfinite='skip')
    run(model, wrapper, [make_batch()] * 6)
    window = ['forward'] * 3
    assert weighting.told == [*window, 'end', *window, 'end'] and regularizer.steps == 2
    bad = dict(make_batch(), c=make_batch()['c'] * float('nan'))
    run(model, wrapper, [make_batch(), make_batch(), bad, *[make_batch()] * 3])
    assert weighting.told[8:] == [*window[:2], 'drop', *window, 'end'] and regularizer.steps == 3


def test_a_step_keeps_one_copy_of_each_row_and_one_gradient():
    """T + 1 copies: the buffer of the rows is the same memory in every step."""
    model = make_model()
    wrapper = wrap(model, aggregator=dict(type='PCGrad'))
    run(model, wrapper, [make_batch()])
    buffer = wrapper.level.rows.buffer
    size = sum(p.numel() for p in model.encoder.parameters())
    assert buffer.shape == (1, 3, size)
    run(model, wrapper, [make_batch(seed=1)])
    assert wrapper.level.rows.buffer is buffer
