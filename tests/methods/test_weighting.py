"""Every registered weighting, by its properties."""

import io
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import Tensor

import mmrepmtl.engine  # noqa: F401  fills the registries
from mmrepmtl.methods.weighting import EqualWeighting, UncertaintyWeighting
from mmrepmtl.registry import WEIGHTINGS

NAMES = sorted(WEIGHTINGS.module_dict)
OWN = [name for name in NAMES if WEIGHTINGS.get(name).loss_transform == 'own']
RANDOM = {'RLW', 'IGBv2'}  # which task gets which random number depends on its place
DETERMINISTIC = [name for name in NAMES if name not in RANDOM]
PER_EPOCH = [name for name in NAMES if WEIGHTINGS.build(dict(type=name)).per_epoch]
# So that few steps reach every phase.
SHORT = {
    'STCH': dict(warmup_epochs=1),
    'IGBv2': dict(buffer_size=16, random_epochs=3, learn_after=2, update_every=5),
}
LOSSES = torch.tensor([0.5, 2.0, 30.0], dtype=torch.float64)
LABELLED = torch.tensor([True, False, True])
OVERLAYS = {
    'ew': 'EqualWeighting',
    'ew-log': 'EqualWeighting',
    'gls': 'GLS',
    'rlw': 'RLW',
    'uw': 'UncertaintyWeighting',
    'dwa': 'DWA',
    'imtl-l': 'IMTLL',
    'igbv2': 'IGBv2',
    'stch': 'STCH',
    'famo': 'FAMO',
    'go4align': 'GO4Align',
}
METHODS = Path(__file__).parents[2] / 'configs/_base_/methods'
# Weights of c L against those of L are c^-p; the learned ones approach p = 1.
POWERS = dict(EqualWeighting=0, GLS=0, RLW=0, DWA=0, FAMO=0, GO4Align=0, STCH=1, IGBv2=1)


def build(name, num_tasks=3, **kwargs):
    weighting = WEIGHTINGS.build(dict(type=name, **kwargs))
    weighting.setup(num_tasks)
    weighting.setup(num_tasks)
    return weighting.double()


def weights(weighting, losses, labelled=None, advance=True):
    leaf = losses.clone().requires_grad_()
    scalar = weighting(leaf, labelled, advance)
    return scalar, torch.autograd.grad(scalar, leaf, retain_graph=True)[0]


def series(num_steps, num_tasks=3, seed=0):
    """Losses of a run: falling at different rates, noisy."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(num_steps, 10, generator=generator, dtype=torch.float64)[:, :num_tasks]
    rates = torch.linspace(0.02, 0.1, 10, dtype=torch.float64)[:num_tasks]
    start = torch.tensor([0.5, 2.0, 30.0, 1.0, 5.0], dtype=torch.float64)[:num_tasks]
    return start * torch.exp(0.2 * noise - rates * torch.arange(num_steps)[:, None])


def train_step(weighting, step, micro_batches, labelled=None, epoch=3):
    """Does what the trainer does in one step; the learned weights are moved by the sign of their gradient.

    Returns the weights in each micro-batch.
    """
    learned, found, total = weighting.learned(), [], 0.0
    for i, losses in enumerate(micro_batches):
        scalar, w = weights(weighting, losses, labelled, i == len(micro_batches) - 1)
        found.append(w)
        total = total + scalar / len(micro_batches)
    if learned:
        for parameter, gradient in zip(learned, torch.autograd.grad(total, learned), strict=True):
            parameter.data -= 0.01 * gradient.sign()
    if weighting.second_look:
        after = torch.stack(list(micro_batches)).mean(0)
        factors = torch.tensor([0.9, 0.99, 0.95, 0.8, 0.97], dtype=after.dtype)[: len(after)]
        weighting.after_step(after * factors ** (1 + step % 3), labelled)
    if weighting.per_epoch and step % epoch == epoch - 1:
        weighting.end_epoch()
    return found


def train(weighting, losses, labelled=None, start=0):
    """The weights in each step, (steps, T)."""
    return torch.stack([train_step(weighting, start + i, [row], labelled)[0] for i, row in enumerate(losses)])


def flat(state):
    """{path: leaf} of nested state."""
    if isinstance(state, dict):
        pairs = [(str(key), value) for key, value in state.items()]
    elif isinstance(state, (list, tuple)):
        pairs = [(str(i), value) for i, value in enumerate(state)]
    else:
        return {'': state}
    return {f'{key}.{rest}': leaf for key, value in pairs for rest, leaf in flat(value).items()}


def saved(weighting):
    file = io.BytesIO()
    torch.save(weighting.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def same(a, b, **tolerance):
    """Whether two states are equal, bit for bit or within a tolerance."""
    a, b = flat(a), flat(b)
    if a.keys() != b.keys():
        return False
    for key, left in a.items():
        right = b[key]
        if not isinstance(left, Tensor):
            if left != right:
                return False
        elif tolerance and left.is_floating_point():
            if not torch.allclose(left, right, equal_nan=True, **tolerance):
                return False
        elif not torch.equal(left.nan_to_num(nan=-1.0), right.nan_to_num(nan=-1.0)):
            return False
    return True


@pytest.mark.parametrize('name', DETERMINISTIC)
def test_the_order_of_the_tasks_does_not_matter(name):
    order, losses = torch.tensor([2, 0, 1]), series(20)
    plain, permuted = build(name, **SHORT.get(name, {})), build(name, **SHORT.get(name, {}))
    for step, row in enumerate(losses):
        scalar, w = weights(plain, row)
        scalar_permuted, w_permuted = weights(permuted, row[order])
        assert torch.allclose(scalar, scalar_permuted) and torch.allclose(w[order], w_permuted)
        if plain.second_look:
            plain.after_step(row * LOSSES.sigmoid())
            permuted.after_step((row * LOSSES.sigmoid())[order])
        if plain.per_epoch and step % 3 == 2:
            plain.end_epoch()
            permuted.end_epoch()


@pytest.mark.parametrize('name', NAMES)
def test_no_setup_is_needed(name):
    """As in a plain loop: ``weighting(losses_T)``."""
    ready = WEIGHTINGS.get(name)()
    ready.setup(3)
    assert torch.equal(WEIGHTINGS.get(name)()(LOSSES), ready(LOSSES))


@pytest.mark.parametrize('name', NAMES)
def test_every_task_gets_a_positive_weight(name):
    weighting = build(name, **SHORT.get(name, {}))
    scalar, w = weights(weighting, LOSSES)
    assert scalar.shape == () and torch.isfinite(scalar) and (w > 0).all()
    w = train(weighting, series(20), start=1)
    assert torch.isfinite(w).all() and (w > 0).all()


@pytest.mark.parametrize('name', DETERMINISTIC)
def test_a_task_that_is_never_labelled_changes_nothing_for_the_others(name):
    losses, others = series(20), torch.tensor([0, 2])
    weighting, alone = build(name, **SHORT.get(name, {})), build(name, 2, **SHORT.get(name, {}))
    for step, row in enumerate(losses):
        (w,) = train_step(weighting, step, [torch.where(LABELLED, row, 0.0)], LABELLED)
        scalar, w_alone = weights(alone, row[others])
        assert w[1] == 0 and torch.allclose(w[others], w_alone), step
        if alone.learned():
            for parameter, gradient in zip(alone.learned(), torch.autograd.grad(scalar, alone.learned()), strict=True):
                parameter.data -= 0.01 * gradient.sign()
        if alone.second_look:
            alone.after_step(row[others] * torch.tensor([0.9, 0.95], dtype=torch.float64) ** (1 + step % 3))
        if alone.per_epoch and step % 3 == 2:
            alone.end_epoch()


@pytest.mark.parametrize('name', NAMES)
def test_a_step_without_labels_leaves_the_state_of_the_task_alone(name):
    weighting = build(name, **SHORT.get(name, {}))
    train(weighting, series(10))
    per_task = {key: value for key, value in flat(saved(weighting)).items() if getattr(value, 'shape', ()) == (3,)}
    (w,) = train_step(weighting, 10, [torch.where(LABELLED, LOSSES, 0.0)], LABELLED)
    assert w[1] == 0 and (w[LABELLED] > 0).all()
    now = flat(saved(weighting))
    for key, before in per_task.items():
        if 'previous_T' not in key:  # IGBv2: the weights of the step before
            assert torch.equal(before[1].nan_to_num(nan=-1.0), now[key][1].nan_to_num(nan=-1.0)), key


@pytest.mark.parametrize('name', NAMES)
def test_a_step_without_any_label_is_zero_and_harms_nothing(name):
    weighting, twin = build(name, **SHORT.get(name, {})), build(name, **SHORT.get(name, {}))
    nothing = torch.zeros(3, dtype=torch.bool)
    for step, row in enumerate(series(20)):
        if step in (0, 7, 15):
            scalar, w = weights(weighting, torch.zeros(3, dtype=torch.float64), nothing)
            assert scalar == 0 and scalar.shape == () and not w.any()
            if weighting.second_look:
                weighting.after_step(torch.zeros(3, dtype=torch.float64), nothing)
        (w,), (w_twin,) = train_step(weighting, step, [row]), train_step(twin, step, [row])
        assert (w > 0).all()
        if name not in RANDOM:
            assert torch.allclose(w, w_twin)


@pytest.mark.parametrize('name', NAMES)
def test_one_task_trains_plainly(name):
    w = train(build(name, 1, **SHORT.get(name, {})), series(20, 1))
    assert torch.isfinite(w).all() and (w > 0).all()
    if name in POWERS:
        expected = series(20, 1) ** -POWERS[name]
        assert torch.allclose(w, expected)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('name', NAMES)
def test_losses_of_any_scale_get_finite_positive_weights(name, dtype):
    for start in ([1e-6, 1e-4, 1e-2], [1e6, 1e4, 1e2], [1e6, 1.0, 1e-6], [1e-6] * 3, [1e6] * 3):
        weighting = WEIGHTINGS.build(dict(type=name, **SHORT.get(name, {})))
        weighting.setup(3)
        losses = (series(20) / series(20)[0] * torch.tensor(start)).to(dtype)
        w = train(weighting, losses)
        assert w.dtype == dtype and torch.isfinite(w).all() and (w > 0).all()
        scalar, _ = weights(weighting, losses[-1])
        assert scalar.dtype == dtype and torch.isfinite(scalar)
        floats = [
            leaf for leaf in flat(saved(weighting)).values() if isinstance(leaf, Tensor) and leaf.is_floating_point()
        ]
        assert not any(leaf.isinf().any() for leaf in floats)


@pytest.mark.parametrize('name', POWERS)
def test_a_common_factor_of_the_losses_changes_at_most_a_common_factor_of_the_weights(name):
    losses = series(20)
    w = train(build(name, **SHORT.get(name, {})), losses)
    for factor in (2.0**-20, 2.0**20):
        scaled = train(build(name, **SHORT.get(name, {})), factor * losses)
        assert torch.allclose(scaled * factor ** POWERS[name], w, rtol=1e-5)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('is_set_up', [False, True])
def test_a_run_resumed_in_the_middle_of_a_window_goes_on_bit_for_bit(name, is_set_up):
    kwargs, losses = SHORT.get(name, {}), series(30)
    weighting = build(name, **kwargs)
    train(weighting, losses[:16])
    weights(weighting, losses[16], advance=False)
    state = saved(weighting)

    resumed = build(name, **kwargs) if is_set_up else WEIGHTINGS.build(dict(type=name, **kwargs)).double()
    if is_set_up:
        train(resumed, 2 * losses[:7])  # whatever it did before is forgotten
    resumed.load_state_dict(state)
    assert same(saved(resumed), state)
    expected, found = train(weighting, losses[17:], start=17), train(resumed, losses[17:], start=17)
    assert torch.equal(expected, found) and same(saved(resumed), saved(weighting))


@pytest.mark.parametrize('name', NAMES)
def test_two_micro_batches_leave_the_state_of_one_batch(name):
    whole, halves = build(name), build(name)
    for step, row in enumerate(series(8)):
        part = row * torch.tensor([0.3, 1.2, 0.9], dtype=torch.float64)
        (w,) = train_step(whole, step, [row])
        found = train_step(halves, step, [part, 2 * row - part])
        if name in ('EqualWeighting', 'RLW', 'DWA', 'IMTLL', 'UncertaintyWeighting'):  # weights know no current loss
            assert torch.allclose(torch.stack(found), w)
        if not whole.second_look:  # whose weights depend on the losses of the micro-batch
            assert same(whole.state_dict(), halves.state_dict(), rtol=1e-6, atol=1e-9), step
    assert same(whole.state_dict(), halves.state_dict(), rtol=1e-6, atol=1e-9)


def test_uncertainty_weighting_takes_any_losses():
    weighting = build('UncertaintyWeighting')
    losses = torch.tensor([1.0, 0.0, -2.0], dtype=torch.float64)
    assert weighting(losses).item() == pytest.approx(-0.5)
    assert weights(weighting, losses)[1].tolist() == pytest.approx([0.5, 0.5, 0.5])


def test_an_error_names_the_task_where_the_names_are_known():
    weighting = build('GLS')
    weighting.task_names = ['semseg', 'depth']
    with pytest.raises(ValueError, match="GLS: the loss of task 'depth' is -1; this method needs positive losses: use"):
        weighting(torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match="task 'semseg' is 0; this method needs positive losses: a task without a la"):
        weighting(torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize('name', [name for name in OWN if name != 'UncertaintyWeighting'])
def test_losses_that_are_not_positive_are_refused_with_the_methods_name(name):
    weighting = build(name)
    for bad in (0.0, -1.5):
        losses = torch.tensor([1.0, bad, 2.0], dtype=torch.float64)
        with pytest.raises(ValueError, match=f'{name}: the loss of task 1 is {bad:g}'):
            weighting(losses)
        weights(weighting, LOSSES)
        if weighting.second_look:
            with pytest.raises(ValueError, match=f'{name}: the loss of task 1 is {bad:g}'):
                weighting.after_step(losses)


@pytest.mark.parametrize('name', NAMES)
def test_equal_ranks_stay_equal_whatever_the_global_random_state(name):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = train(build(name, **SHORT.get(name, {})), series(20))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(first, train(build(name, **SHORT.get(name, {})), series(20)))


@pytest.mark.parametrize('name', NAMES)
def test_the_runs_optimizer_gets_nothing_but_scales(name):
    """Agents and logits with optimizers of their own are not its business."""
    learned = build(name).learned()
    assert [p.shape for p in learned] == ([(3,)] if name in ('IMTLL', 'UncertaintyWeighting') else [])


@pytest.mark.parametrize('name', PER_EPOCH)
def test_an_interval_of_steps_stands_for_an_epoch(name):
    by_epoch, by_steps = build(name, **SHORT.get(name, {})), build(name, interval=3, **SHORT.get(name, {}))
    assert by_epoch.per_epoch and not by_steps.per_epoch
    assert torch.equal(train(by_epoch, series(20)), train(by_steps, series(20)))
    with pytest.raises(ValueError, match=f'{name}: interval must be at least 1'):
        WEIGHTINGS.build(dict(type=name, interval=0))


@pytest.mark.parametrize('name', PER_EPOCH)
def test_an_epoch_without_a_step_is_none_and_a_window_may_cross_the_end(name):
    plain, odd = build(name), build(name)
    odd.end_epoch()
    for step, row in enumerate(series(9)):
        (w,) = train_step(plain, step, [row])
        if step % 3 == 0:
            odd.end_epoch()
            odd.end_epoch()
        _, half = weights(odd, row, advance=False)
        if step % 3 == 0:
            odd.end_epoch()  # in the middle of a window: the window belongs to the next epoch
        weights(odd, row)
        assert torch.allclose(half, w)


@pytest.mark.parametrize(('command', 'name'), OVERLAYS.items())
def test_every_method_has_an_overlay_that_states_all_it_is_made_of(command, name):
    wrapper = Config.fromfile(METHODS / f'{command}.py').optim_wrapper
    assert set(wrapper) == {'type', 'loss_transform', 'weighting', 'aggregator', 'regularizers'}
    weighting = WEIGHTINGS.build(wrapper.weighting)
    assert type(weighting).__name__ == name and wrapper.aggregator is None and wrapper.regularizers == []
    assert wrapper.loss_transform == ('log' if command == 'ew-log' else None)


def test_equal_weighting_is_the_sum():
    assert EqualWeighting()(LOSSES) == 32.5


def test_uncertainty_weighting_learns_the_log_of_each_loss():
    """The minimum over s of L exp(-s) / 2 + s / 2 is at s = ln L."""
    weighting = UncertaintyWeighting(3).double()
    weighting.log_variance_T.data = LOSSES.log()
    (gradient,) = torch.autograd.grad(weighting(LOSSES), weighting.log_variance_T)
    assert gradient.abs().max() < 1e-12
    weighting.log_variance_T.data = LOSSES.log() + torch.tensor([0.1, -0.1, 0.1])
    (gradient,) = torch.autograd.grad(weighting(LOSSES), weighting.log_variance_T)
    assert (gradient > 0).tolist() == [True, False, True]
