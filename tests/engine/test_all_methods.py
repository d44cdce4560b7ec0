"""Every method of the command line, in the engine: learns, reaches all parameters, scales, accumulates, resumes."""

import copy
import io

import pytest
import torch
from torch import nn

from tests.engine.harness import REP, run
from tests.engine.overlays import CASES, METHODS, is_at_parameters, settings_of, window, wrap
from tests.engine.toy import Partial, ToyModel, make_batch, make_model, max_difference, split

PUBLISHED = (
    'ew ew-log gls rlw uw dwa imtl-l igbv2 stch famo excess-mtl go4align mgda gradnorm pcgrad graddrop gradvac imtl-g '
    'cagrad mtadam nash-mtl metabalance moco aligned-mtl fairgrad upgrad config sdmgrad imtl db-mtl rep-mtl'
).split()

WITHOUT_REP = [name for name in METHODS if not settings_of(name)['regularizers']]


def losses_of(model, batch) -> torch.Tensor:
    with torch.no_grad():
        return torch.stack(list(model.losses(**batch).values()))


def test_every_published_method_has_an_overlay():
    assert set(PUBLISHED) <= set(METHODS)


# Far from a minimum: targets that a head can learn, of different scales.
def learnable(size=6, seed=0):
    batch = make_batch(size, seed)
    image = batch['inputs']
    return dict(batch, a=(image[:, 0] > 0).long(), b=0.5 + image.sum(1, keepdim=True), c=2 * image[:, :2] - 1)


@pytest.mark.parametrize('name', METHODS)
def test_every_task_is_learned(name):
    """Three tasks on one batch: each loss falls by a tenth at least."""
    model = make_model()
    batch = learnable()
    before = losses_of(model, batch)
    wrapper = wrap(model, name, lr=0.01, optimizer=torch.optim.Adam)
    run(model, wrapper, [batch] * (40 * window(name)))
    after = losses_of(model, batch)
    assert (after < 0.9 * before).all(), (before.tolist(), after.tolist())


@pytest.mark.parametrize('name', CASES)
def test_every_head_and_the_encoder_are_reached(name):
    model, start = make_model(), make_model()
    run(model, wrap(model, name), [make_batch(seed=i) for i in range(window(name))])
    for (key, p), q in zip(model.named_parameters(), start.parameters(), strict=True):
        assert not torch.equal(p, q), key


@pytest.mark.parametrize('name', WITHOUT_REP)
def test_rep_mtl_can_be_added(name):
    batches = [make_batch(seed=i) for i in range(2 * window(name))]
    model, plain = make_model(), make_model()
    logs = run(model, wrap(model, name, regularizers=[REP]), batches)
    run(plain, wrap(plain, name), batches)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert {'rep_mtl/tsr', 'rep_mtl/csa'} <= set(logs[0])
    for part in ('encoder', 'heads'):
        assert max_difference(getattr(model, part), getattr(plain, part)) > 1e-6, part


@pytest.mark.parametrize('name', CASES)
def test_a_resumed_run_is_the_same_bit_for_bit(name):
    """With momentum, accumulation and a cut in the middle of an interval; the state passes through a safe load."""
    counts = 2 * window(name)
    batches = [make_batch(seed=i) for i in range(9 * counts)]
    cut = 7 * counts
    build = dict(accumulative_counts=counts, optimizer=torch.optim.Adam, lr=0.01)
    model = make_model()
    wrapper = wrap(model, name, **build)
    run(model, wrapper, batches[:cut])
    buffer = io.BytesIO()
    torch.save(dict(model=model.state_dict(), optimizer=wrapper.state_dict()), buffer)
    run(model, wrapper, batches[cut:])
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    other = make_model(seed=1)
    other.load_state_dict(state['model'])
    resumed = wrap(other, name, **build)
    resumed.load_state_dict(state['optimizer'])
    resumed._inner_count = cut
    run(other, resumed, batches[cut:])
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


#: Loss weightings that read no loss of the batch at hand, so that their weights are those of the whole batch.
LINEAR = ('EqualWeighting', 'RLW', 'DWA', 'UncertaintyWeighting', 'IMTLL')


def equals_its_halves(name) -> bool:
    settings = settings_of(name)
    linear = settings['weighting']['type'] in LINEAR and not settings['loss_transform'] and not settings['regularizers']
    return linear and (settings['aggregator'] is None or is_at_parameters(name))


@pytest.mark.parametrize('name', [name for name in CASES if equals_its_halves(name)])
def test_two_half_batches_equal_one_whole(name):
    """A parameter-level method combines at the end of the window; what a weighting remembers is a mean over it."""
    model, other = make_model(), make_model()
    size = window(name)
    wholes = [make_batch(4, seed) for seed in range(6 * size)]
    if size == 1:
        halves = [half for whole in wholes for half in split(whole, [2, 2])]
    else:  # its independent batches take turns
        groups = [wholes[i : i + size] for i in range(0, len(wholes), size)]
        halves = [split(whole, [2, 2])[k] for group in groups for k in range(2) for whole in group]
    run(model, wrap(model, name, accumulative_counts=2 * size), halves)
    run(other, wrap(other, name), wholes)
    assert max_difference(model, other) < (1e-6 if name in ('uw', 'imtl-l', 'imtl') else 1e-9)  # learned in float32


class Scaled(ToyModel):
    """The losses times a factor for each task."""

    factors = dict(a=1.0, b=1.0, c=1.0)

    def losses(self, inputs, a, b, c):
        return {task: loss * self.factors[task] for task, loss in super().losses(inputs, a, b, c).items()}


@pytest.mark.parametrize(
    'factors',
    [(1e-6, 1e-6, 1e-6), (1e6, 1e6, 1e6), (1.0, 1e4, 1.0), (1e-2, 1.0, 1e2)],
    ids=lambda f: '-'.join(f'{x:g}' for x in f),
)
@pytest.mark.parametrize('name', METHODS)
def test_any_scale_of_the_losses_gives_finite_steps(name, factors):
    model, start = make_model(cls=Scaled, dtype=torch.float32), make_model(cls=Scaled, dtype=torch.float32)
    model.factors = dict(zip('abc', factors, strict=True))
    wrapper = wrap(model, name, lr=1e-3, optimizer=torch.optim.Adam)
    run(model, wrapper, [make_batch(seed=i, dtype=torch.float32) for i in range(3 * window(name))])
    moved = nn.utils.parameters_to_vector(model.parameters()) - nn.utils.parameters_to_vector(start.parameters())
    assert torch.isfinite(moved).all()
    assert (nn.utils.parameters_to_vector(model.encoder.parameters()) != 0).any() and moved.abs().max() < 0.1
    assert max_difference(model.encoder, start.encoder) > 1e-5


@pytest.mark.parametrize('missing', ['b', 'ac', 'abc'])
@pytest.mark.parametrize('name', METHODS)
def test_unlabelled_tasks_are_left_out(name, missing):
    model = make_model(cls=Partial)
    wrapper = wrap(model, name)
    batches = [make_batch(seed=i) for i in range(3 * window(name))]
    run(model, wrapper, batches)
    before = {task: copy.deepcopy(head.state_dict()) for task, head in model.heads.items()}
    encoder = copy.deepcopy(model.encoder.state_dict())
    model.missing = tuple(missing)
    logs = run(model, wrapper, batches[: window(name)])
    model.missing = ()
    assert all(torch.isfinite(torch.tensor(list(log.values()))).all() for log in logs)
    for task, head in model.heads.items():
        same = all(torch.equal(value, before[task][key]) for key, value in head.state_dict().items())
        assert same == (task in missing), task
    # Without any label nothing moves, not even by what a method remembers.
    moved = any(not torch.equal(value, encoder[key]) for key, value in model.encoder.state_dict().items())
    assert moved == (missing != 'abc')
    run(model, wrapper, batches)
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
@pytest.mark.parametrize('name', WITHOUT_REP)  # with it, test_optim_wrapper compares over seeds
def test_low_precision_steps_are_near_those_of_float32(name, precision):
    """The gradients are unscaled before a method sees them: one step differs by rounding only."""
    batches = [make_batch(seed=i, dtype=torch.float32) for i in range(window(name))]
    model, other, start = (make_model(dtype=torch.float32) for _ in range(3))
    run(model, wrap(model, name, precision=precision, loss_scale=dict(init_scale=1024.0)), batches)
    run(other, wrap(other, name), batches)
    got, wanted, before = (nn.utils.parameters_to_vector(m.parameters()) for m in (model, other, start))
    assert (got - wanted).norm() < 0.1 * (wanted - before).norm()
