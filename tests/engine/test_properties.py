"""Properties over shapes, dtypes, numbers of tasks, missing labels and methods, on cases that hypothesis chooses."""

import math
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.model import BaseModel
from torch import nn

from mmrepmtl.engine import MultiTaskOptimWrapper
from mmrepmtl.engine.gradients.writing import in_layout_of
from mmrepmtl.engine.methods import build_method
from mmrepmtl.methods.rep_mtl import RepMTL
from mmrepmtl.registry import AGGREGATORS, WEIGHTINGS
from tests.engine.harness import Ones, OnesOnRows
from tests.engine.overlays import AGGREGATED, CASES, METHODS, ready, settings_of
from tests.engine.toy import Identity

# The same cases in every run, so that a failure is one of the change at hand.
few = settings(max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
pytestmark = pytest.mark.filterwarnings('ignore:RepMTL')

tasks = st.integers(1, 6)
seeds = st.integers(0, 2**16)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16])


class Any(BaseModel):
    """Any number of tasks, channels and positions; each head is a 1 x 1 convolution, each loss above 0."""

    def __init__(self, num_tasks: int, channels: int, kernel: int, channels_last: bool) -> None:
        super().__init__()
        self.data_preprocessor = Identity()
        self.tasks = tuple('abcdef'[:num_tasks])
        self.encoder = nn.Sequential(nn.Conv2d(3, channels, kernel, padding=kernel // 2), nn.Tanh())
        self.heads = nn.ModuleDict({task: nn.Conv2d(channels, 1 + i, 1) for i, task in enumerate(self.tasks)})
        if channels_last:
            self.to(memory_format=torch.channels_last)

    def values(self, inputs):
        z = self.encoder(inputs)
        return {task: 0.1 + (head(z) - i).square().mean() for i, (task, head) in enumerate(self.heads.items())}

    def forward(self, inputs, missing=(), flags=True, mode='loss'):
        found = {}
        for task, value in self.values(inputs).items():
            found[f'{task}.loss'] = value * 0 if task in missing else value
            if flags:
                found[f'{task}.labelled'] = torch.tensor(float(task not in missing))
        return found


@st.composite
def models(draw, least=1):
    torch.manual_seed(draw(seeds))
    shape = draw(st.integers(1, 4)), 3, draw(st.integers(1, 5)), draw(st.integers(1, 5))
    dtype, last = draw(dtypes), draw(st.booleans())
    model = Any(draw(st.integers(least, 6)), draw(st.integers(1, 5)), draw(st.sampled_from([1, 3])), last).to(dtype)
    inputs = torch.randn(shape).to(dtype)
    return model, inputs.contiguous(memory_format=torch.channels_last) if draw(st.booleans()) else inputs


def step(model, inputs, lr=1e-3, **changes):
    kwargs = changes.pop('batch', {})
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    wrapper = MultiTaskOptimWrapper(optimizer, shared='encoder', **changes)
    logs = []
    for _ in range(changes.get('accumulative_counts', 1)):
        logs.append(model.train_step(dict(inputs=inputs, **kwargs), wrapper))
    return logs[-1]


@few
@given(models(), st.sampled_from(CASES), st.data())
def test_a_step_is_finite_whatever_the_shapes_the_dtype_and_the_missing_labels(case, name, data):
    model, inputs = case
    missing = data.draw(st.sets(st.sampled_from(model.tasks)))
    before = {key: p.clone() for key, p in model.named_parameters()}
    log = step(model, inputs, batch=dict(missing=missing, flags=data.draw(st.booleans())), **ready(name))
    assert all(torch.isfinite(value).all() for value in log.values())
    for key, p in model.named_parameters():
        assert torch.isfinite(p).all(), key
        if key.startswith('heads.') and key.split('.')[1] in missing:
            assert torch.equal(p, before[key]), key  # a head without a label does not move


@few
@given(models(), st.booleans(), st.sampled_from([None, 'log']))
def test_weights_of_one_are_the_plain_sum(case, log_penalty, transform):
    model, inputs = case
    start = {key: value.clone() for key, value in model.state_dict().items()}
    losses = model.values(inputs)
    total = sum(value.float().log() if transform else value for value in losses.values())
    wanted = torch.autograd.grad(total, list(model.parameters()))
    exact = next(model.parameters()).dtype
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.1}[exact]
    for make in (lambda: None, Ones, lambda: Ones(level='representation'), OnesOnRows):
        model.load_state_dict(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        wrapper = MultiTaskOptimWrapper(optimizer, shared='encoder', aggregator=make(), loss_transform=transform)
        wrapper.zero_grad = lambda: None
        model.zero_grad()
        model.train_step(dict(inputs=inputs), wrapper)
        for p, g in zip(model.parameters(), wanted, strict=True):
            assert p.grad.stride() == p.stride() and p.grad.dtype == p.dtype
            assert (p.grad - g).abs().max() <= tolerance * max(1.0, float(g.abs().max()))


@few
@given(models(least=2), seeds)
def test_the_terms_of_rep_mtl_lie_where_they_must(case, seed):
    """TSR is an entropy: in [0, ln T]; neither term depends on the order of the tasks, nor on the unit of a loss."""
    model, inputs = case
    z = model.encoder(inputs).detach().float().requires_grad_()
    heads = {task: head.float() for task, head in model.heads.items()}
    losses = {task: 0.1 + (head(z) - 1).square().mean() for task, head in heads.items()}
    order = torch.randperm(len(losses), generator=torch.Generator().manual_seed(seed)).tolist()
    shuffled = {list(losses)[i]: losses[list(losses)[i]] for i in order}

    def terms(values):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            found = RepMTL(1.0, 1.0)(values, z)
        return found['loss_tsr'], found['loss_csa']

    tsr, csa = terms(losses)
    assert -1e-5 <= tsr.item() <= math.log(len(losses)) + 1e-5 and torch.isfinite(csa)
    for other in (shuffled, {task: 100 * loss for task, loss in losses.items()}):
        for found, wanted in zip(terms(other), (tsr, csa), strict=True):
            assert found.item() == pytest.approx(wanted.item(), rel=1e-3, abs=1e-4)
    grads = torch.autograd.grad(tsr + csa, [z, *model.heads.parameters()], allow_unused=True)
    assert all(torch.isfinite(g).all() for g in grads if g is not None)


# Random numbers belong to places, and MetaBalance and MTAdam bring the others to the norm of the first task.
ORDERED = ('pcgrad', 'graddrop', 'gradvac', 'sdmgrad', 'mtadam', 'imtl', 'metabalance')
DETERMINISTIC = [name for name in AGGREGATED if name not in ORDERED]


@few
@given(st.sampled_from(DETERMINISTIC), tasks, st.integers(1, 9), seeds, dtypes, st.sets(st.integers(0, 5)))
def test_aggregators_do_not_depend_on_the_order_of_the_tasks(name, num_tasks, size, seed, dtype, absent):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_tasks, size, generator=generator).to(dtype).double()
    rows[[t for t in absent if t < num_tasks]] = 0
    losses = 0.5 + torch.rand(num_tasks, generator=generator, dtype=torch.float64)
    order = torch.randperm(num_tasks, generator=generator)
    results = []
    for permuted in (slice(None), order):
        aggregator = build_method(dict(settings_of(name)['aggregator'], level='parameter'), AGGREGATORS)
        aggregator.setup(num_tasks, [size])
        results.append(aggregator(rows[permuted], losses[permuted])[0])
    assert all(torch.isfinite(result).all() for result in results)
    scale = max(1e-6, float(rows.norm()))
    assert (results[0] - results[1]).abs().max() < 1e-5 * scale


@few
@given(st.sampled_from(AGGREGATED), st.integers(1, 9), seeds, st.booleans())
def test_one_task_is_left_as_it_is_up_to_a_factor(name, size, seed, zero):
    """With one task there is nothing to combine: the result points where its gradient does."""
    aggregator = build_method(dict(settings_of(name)['aggregator'], level='parameter'), AGGREGATORS)
    aggregator.setup(1, [size])
    row = torch.randn(1, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * (not zero)
    rows = row if aggregator.num_batches == 1 else row.expand(aggregator.num_batches, 1, size).clone()
    combined, _ = aggregator(rows, torch.ones(1, dtype=torch.float64))
    if zero:
        assert not combined.any()
    elif aggregator.returns == 'gradient':
        cosine = torch.cosine_similarity(combined, row[0], dim=0)
        assert cosine > 1 - 1e-9


@few
@given(st.sampled_from(sorted(WEIGHTINGS.module_dict)), tasks, seeds, st.sets(st.integers(0, 5)), st.integers(-6, 6))
def test_weightings_are_finite_and_leave_unlabelled_tasks_out(name, num_tasks, seed, absent, exponent):
    generator = torch.Generator().manual_seed(seed)
    losses = 10.0**exponent * (0.1 + torch.rand(num_tasks, generator=generator, dtype=torch.float64))
    labelled = torch.tensor([t not in absent for t in range(num_tasks)])
    weighting = build_method(dict(type=name), WEIGHTINGS).double()
    weighting.setup(num_tasks)
    for _ in range(3):
        leaf = torch.where(labelled, losses, 0).requires_grad_()
        scalar = weighting(leaf, labelled)
        weights = torch.autograd.grad(scalar, leaf)[0]
        assert torch.isfinite(scalar) and torch.isfinite(weights).all()
        assert not weights[~labelled].any()
        if weighting.second_look:
            weighting.after_step(torch.where(labelled, 0.9 * losses, 0), labelled)


@few
@given(
    st.lists(st.integers(1, 4), min_size=0, max_size=5),
    st.randoms(use_true_random=False),
    st.randoms(use_true_random=False),
)
def test_any_two_layouts_are_brought_together(shape, one, other):
    def laid_out(values, random):
        order = list(range(values.dim()))
        random.shuffle(order)
        back = [order.index(i) for i in range(len(order))]
        return values.permute(order).contiguous().permute(back) if order else values

    values = torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)
    p, grad = nn.Parameter(laid_out(values, one)), laid_out(values, other)
    found = in_layout_of(grad, p)
    assert found.stride() == p.stride() and torch.equal(found, values)


def test_every_method_is_drawn_from():
    assert set(AGGREGATED) < set(METHODS) and len(CASES) > len(METHODS)
