"""Each loss weighting against its paper's equations, written out by hand or solved in a slower way."""

import itertools
import math

import pytest
import torch

from mmrepmtl.methods.weighting import DWA, FAMO, GLS, IMTLL, RLW, STCH, GO4Align, UncertaintyWeighting
from mmrepmtl.methods.weighting.go4align import kmeans_groups

LOSSES = torch.tensor([0.5, 2.0, 30.0], dtype=torch.float64)
FIRST_AND_LAST = torch.tensor([True, False, True])


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def weights(weighting, losses, labelled=None, advance=True):
    leaf = losses.clone().requires_grad_()
    scalar = weighting(leaf, labelled, advance)
    return scalar.item(), torch.autograd.grad(scalar, leaf)[0]


def softmax(values):
    exponentials = [math.exp(value) for value in values]
    return [value / sum(exponentials) for value in exponentials]


# ---- GLS ----


def test_gls_is_the_geometric_mean_and_applies_its_derivative():
    scalar, w = weights(GLS(), LOSSES)
    mean = (0.5 * 2.0 * 30.0) ** (1 / 3)
    assert math.isclose(scalar, mean)
    assert torch.allclose(w, tensor(*[mean / (3 * loss) for loss in (0.5, 2.0, 30.0)]))
    scalar, w = weights(GLS(), LOSSES, FIRST_AND_LAST)
    assert math.isclose(scalar, math.sqrt(15)) and math.isclose(w[0], math.sqrt(15)) and w[1] == 0


def test_gls_of_many_large_losses_does_not_overflow():
    scalar, w = weights(GLS(), torch.full((40,), 1e12))
    assert math.isclose(scalar, 1e12, rel_tol=1e-5) and torch.allclose(w, torch.full((40,), 1 / 40))


# ---- RLW ----


def test_rlw_takes_the_softmax_of_standard_normal_numbers():
    weighting, generator = RLW(seed=3), torch.Generator().manual_seed(3)
    for _ in range(3):
        expected = torch.randn(3, generator=generator, dtype=torch.float64).softmax(0)
        scalar, w = weights(weighting, LOSSES)
        assert torch.allclose(w, expected) and math.isclose(scalar, expected @ LOSSES)
    drawn = torch.randn(3, generator=generator, dtype=torch.float64)
    _, w = weights(weighting, LOSSES, FIRST_AND_LAST)
    assert w[1] == 0 and torch.allclose(w[FIRST_AND_LAST], drawn[FIRST_AND_LAST].softmax(0))


def test_rlw_weights_sum_to_one_and_favour_nobody():
    weighting = RLW()
    drawn = torch.stack([weights(weighting, LOSSES)[1] for _ in range(2000)])
    assert torch.allclose(drawn.sum(1), torch.ones(2000, dtype=torch.float64))
    assert (drawn.mean(0) - 1 / 3).abs().max() < 0.02 and drawn.std(0).min() > 0.15


def test_rlw_draws_once_per_step_and_by_its_seed():
    weighting = RLW()
    first, second, third = (weights(weighting, LOSSES, advance=advance)[1] for advance in (False, True, True))
    assert torch.equal(first, second) and not torch.equal(second, third)
    assert not torch.equal(first, weights(RLW(seed=1), LOSSES)[1])


# ---- DWA ----


def test_dwa_by_hand():
    weighting = DWA()
    epochs = [[(4.0, 1.0), (2.0, 3.0)], [(1.5, 1.0), (1.5, 1.0)], [(1.0, 1.0)]]
    for index, epoch in enumerate(epochs):
        for losses in epoch:
            _, w = weights(weighting, tensor(*losses))
            if index < 2:
                assert torch.allclose(w, tensor(1.0, 1.0))
        weighting.end_epoch()
        if index == 1:
            # Means: (3, 2), then (1.5, 1): both fell by half.
            assert torch.allclose(weights(weighting, tensor(1.0, 1.0))[1], tensor(1.0, 1.0))
    # (1, 1) in the third epoch, whose extra step above had the same losses: ratios 2/3 and 1.
    scalar, w = weights(weighting, tensor(5.0, 7.0))
    expected = [2 * share for share in softmax([2 / 3 / 2, 1 / 2])]
    assert torch.allclose(w, tensor(*expected)) and math.isclose(scalar, 5 * expected[0] + 7 * expected[1])


def test_dwa_temperature_and_refusals():
    hot, cold = DWA(temperature=100.0, interval=1), DWA(temperature=0.1, interval=1)
    for weighting in (hot, cold):
        for losses in ((1.0, 1.0), (0.5, 1.0)):
            weights(weighting, tensor(*losses))
    assert torch.allclose(weights(hot, tensor(1.0, 1.0))[1], tensor(1.0, 1.0), atol=0.01)
    assert torch.allclose(weights(cold, tensor(1.0, 1.0))[1], tensor(*[2 * s for s in softmax([5.0, 10.0])]))
    with pytest.raises(ValueError, match='DWA: temperature must be positive, got 0'):
        DWA(temperature=0)


def test_dwa_compares_the_last_two_epochs_in_which_a_task_was_labelled():
    weighting = DWA(interval=1)
    weights(weighting, tensor(8.0, 1.0))
    weights(weighting, tensor(0.0, 1.0), torch.tensor([False, True]))
    weights(weighting, tensor(2.0, 1.0))
    _, w = weights(weighting, tensor(1.0, 1.0))
    assert torch.allclose(w, tensor(*[2 * share for share in softmax([2 / 8 / 2, 1 / 2])]))


# ---- IMTL-L ----


def test_imtl_l_is_stationary_where_all_scaled_losses_are_one():
    weighting = IMTLL(3).double()
    weighting.log_scale_T.data = -LOSSES.log()
    scalar = weighting(LOSSES)
    (gradient,) = torch.autograd.grad(scalar, weighting.log_scale_T)
    assert gradient.abs().max() < 1e-12 and math.isclose(scalar.item(), 3 + LOSSES.log().sum().item())
    assert torch.allclose(weights(weighting, LOSSES)[1], 1 / LOSSES)


def test_imtl_l_starts_at_the_sum_and_gets_there():
    weighting = IMTLL(3).double()
    assert weighting(LOSSES).item() == 32.5
    optimizer = torch.optim.Adam(weighting.learned(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        weighting(LOSSES).backward()
        optimizer.step()
    assert torch.allclose(weighting.log_scale_T.exp() * LOSSES, torch.ones(3, dtype=torch.float64), atol=1e-3)


def test_imtl_l_is_twice_uncertainty_weighting_at_the_negated_parameter():
    scales, uncertainty = IMTLL(3).double(), UncertaintyWeighting(3).double()
    scales.log_scale_T.data = tensor(0.3, -1.0, 2.0)
    uncertainty.log_variance_T.data = -scales.log_scale_T.data
    assert math.isclose(scales(LOSSES).item(), 2 * uncertainty(LOSSES).item())


# ---- STCH ----


def stch(mu, nadir):
    """One whose warm-up is over and whose nadir is this."""
    weighting = STCH(mu=mu, warmup_epochs=0, interval=1)
    weights(weighting, nadir)
    return weighting


def test_stch_minimises_log_losses_until_the_epoch_after_the_warm_up_has_given_the_nadir():
    weighting = STCH(mu=0.5, warmup_epochs=2)
    for epoch in range(3):
        for losses in (LOSSES, 3 * LOSSES):
            scalar, w = weights(weighting, (epoch + 1) * losses)
            assert math.isclose(scalar, ((epoch + 1) * losses).log().sum().item())
            assert torch.allclose(w, 1 / ((epoch + 1) * losses))
        weighting.end_epoch()
    nadir = 3 * (LOSSES + 3 * LOSSES) / 2
    losses = tensor(1.0, 2.0, 3.0)
    for _ in range(3):
        scalar, w = weights(weighting, losses)
        terms = [(loss / n) ** (1 / 0.5) for loss, n in zip(losses.tolist(), nadir.tolist(), strict=True)]
        assert math.isclose(scalar, 3 * 0.5 * math.log(sum(terms)))
        assert torch.allclose(w, tensor(*[3 * term / sum(terms) for term in terms]) / losses)
        weighting.end_epoch()  # the nadir stays


def test_stch_tends_to_the_maximum_and_keeps_the_scale_of_the_sum_of_log_losses():
    losses, nadir = tensor(1.0, 2.0, 3.0), tensor(10.0, 8.0, 20.0)
    gaps = (losses / nadir).log()
    errors = [weights(stch(mu, nadir), losses)[0] / 3 - gaps.max().item() for mu in (1.0, 0.1, 0.01, 1e-4)]
    assert all(0 <= small < large for large, small in itertools.pairwise(errors)) and errors[-1] < 1e-9
    _, w = weights(stch(1e-4, nadir), losses)
    assert torch.allclose(w, tensor(0.0, 3 / 2.0, 0.0))  # 2 of 8 is the largest
    for mu in (0.1, 1.0, 7.0):
        assert math.isclose((weights(stch(mu, nadir), losses)[1] * losses).sum(), 3)


def test_stch_tasks_far_apart_do_not_overflow():
    scalar, w = weights(stch(1e-3, tensor(1.0, 1.0)), tensor(1e6, 1e-6))
    assert math.isclose(scalar, 2 * math.log(1e6)) and torch.allclose(w, tensor(2e-6, 0.0))


def test_stch_adds_the_log_loss_of_a_task_whose_nadir_is_not_known_yet():
    weighting = STCH(mu=0.5, warmup_epochs=0)
    weights(weighting, tensor(2.0, 0.0, 4.0), FIRST_AND_LAST)
    weighting.end_epoch()
    losses = tensor(1.0, 5.0, 3.0)
    pair = 2 * 0.5 * math.log((1 / 2) ** 2 + (3 / 4) ** 2)
    assert math.isclose(weights(weighting, losses)[0], pair + math.log(5))
    weighting.end_epoch()
    assert math.isclose(weights(weighting, losses)[0], 3 * 0.5 * math.log((1 / 2) ** 2 + 1 + (3 / 4) ** 2))


def test_stch_refusals():
    with pytest.raises(ValueError, match='STCH: mu must be positive, got 0'):
        STCH(mu=0)
    with pytest.raises(ValueError, match='STCH: warmup_epochs must not be negative, got -1'):
        STCH(warmup_epochs=-1)


# ---- FAMO ----


class SlowFAMO:
    """Algorithm 1 with autograd's Jacobian and torch's Adam."""

    def __init__(self, lr, weight_decay):
        self.logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.logits], lr=lr, weight_decay=weight_decay)

    def weights(self, losses):
        z = self.logits.detach().softmax(0)
        return z / losses / (z / losses).sum()

    def update(self, before, after):
        jacobian = torch.autograd.functional.jacobian(lambda logits: logits.softmax(0), self.logits)
        self.logits.grad = jacobian.T @ (before.log() - after.log())
        self.optimizer.step()


def test_famo_follows_algorithm_1_with_adam():
    fast, slow = FAMO(lr=0.1, weight_decay=0.01), SlowFAMO(lr=0.1, weight_decay=0.01)
    losses = LOSSES.clone()
    for step in range(6):
        scalar, w = weights(fast, losses)
        assert torch.allclose(w, slow.weights(losses), rtol=1e-12) and math.isclose(w.sum(), 1)
        assert math.isclose(scalar, (w @ losses).item())
        after = losses * tensor(0.7, 0.9 + 0.05 * step, 1.01)
        fast.after_step(after)
        slow.update(losses, after)
        assert torch.allclose(fast.logits_T, slow.logits.detach(), rtol=1e-12)
        losses = after * tensor(1.1, 0.8, 1.0)  # the next batch


def test_famo_first_step_by_hand():
    weighting = FAMO()
    _, w = weights(weighting, tensor(1.0, 4.0))
    assert torch.allclose(w, tensor(0.8, 0.2))  # z = 1/2: c z / L = (1/2, 1/8) / (5/8)
    weighting.after_step(tensor(0.5, 4.0))
    # delta = (+, -) ln(2) / 4; Adam's first step is lr times its sign. The task that fell loses weight.
    assert torch.allclose(weighting.logits_T, tensor(-0.025, 0.025))
    assert weighting.learned() == []


def test_famo_equal_relative_falls_leave_the_weights_alone():
    weighting = FAMO(weight_decay=0.0)  # Adam would blow up the decay of what rounding leaves
    for _ in range(5):
        weights(weighting, LOSSES)
        weighting.after_step(0.7 * LOSSES)
    assert weighting.logits_T.abs().max() < 1e-8


def test_famo_weighs_the_task_that_falls_slower_more_until_all_fall_alike():
    """Losses that fall by a rate of their own times their weight in log L: FAMO equalises the rates."""
    weighting, rates = FAMO(lr=0.025, weight_decay=0.0), tensor(0.1, 0.2, 0.4)
    losses = LOSSES.clone()
    for _ in range(400):
        _, w = weights(weighting, losses)
        falls = rates * w * losses / (w * losses).sum()
        after = losses * (-falls).exp()
        weighting.after_step(after)
        losses = after / (-falls).exp()
    assert torch.allclose(falls, falls.mean().expand(3), rtol=0.02)


def test_famo_takes_the_windows_means_and_uses_them_once():
    weighting, reference = FAMO(), FAMO()
    weights(weighting, 0.5 * LOSSES, advance=False)
    weights(weighting, 1.5 * LOSSES)
    weights(reference, LOSSES)
    after = LOSSES * tensor(0.5, 0.9, 1.0)
    for method in (weighting, reference):
        method.after_step(after)
    assert torch.allclose(weighting.logits_T, reference.logits_T) and weighting.logits_T.any()
    weighting.after_step(0.1 * after)
    assert torch.allclose(weighting.logits_T, reference.logits_T)
    assert weighting.updates_T.tolist() == [1, 1, 1]


def test_famo_leaves_out_a_task_whose_loss_is_no_longer_finite():
    weighting = FAMO()
    weights(weighting, LOSSES)
    weighting.after_step(tensor(0.4, float('nan'), 30.0))
    assert weighting.updates_T.tolist() == [1, 0, 1] and weighting.logits_T[1] == 0
    assert torch.allclose(weighting.logits_T[FIRST_AND_LAST], tensor(-0.025, 0.025))


# ---- GO4Align ----


def test_go4align_indicators_by_hand():
    """One group per task: each task has its own indicator; one group: their mean."""
    each, one = GO4Align(num_groups=3, beta=0.1, loss_unit=1.0), GO4Align(num_groups=1, beta=0.1, loss_unit=1.0)
    p = [1 / 3] * 3
    for row in ([0.5, 2.0, 3.0], [0.4, 2.5, 1.0], [0.3, 1.5, 2.0]):
        p = [share * math.exp(-0.1 * loss) for share, loss in zip(p, row, strict=True)]
        p = [share / sum(p) for share in p]
        gamma = tensor(*[share * sum(row) / loss for share, loss in zip(p, row, strict=True)])
        assert torch.allclose(weights(each, tensor(*row))[1], gamma)
        assert torch.allclose(weights(one, tensor(*row))[1], gamma.mean().expand(3))


def test_go4align_groups_by_hand():
    weighting = GO4Align(num_groups=2, beta=0.0)
    # gamma = sum / (4 L) = 30.25 / L: 30.25, 27.5, 0.55 and 0.5 (sum 121).
    _, w = weights(weighting, tensor(1.0, 10.0, 10.0, 100.0))
    gamma = 121 / (4 * tensor(1.0, 10.0, 10.0, 100.0))
    assert torch.allclose(w, torch.stack([gamma[0], *[gamma[1:].mean()] * 3]))
    _, w = weights(weighting, tensor(1.0, 50.0, 1.1, 60.0))
    gamma = 112.1 / (4 * tensor(1.0, 50.0, 1.1, 60.0))
    assert torch.allclose(w[[0, 2]], gamma[[0, 2]].mean().expand(2))
    assert torch.allclose(w[[1, 3]], gamma[[1, 3]].mean().expand(2))


def test_go4align_unit_is_the_mean_loss_of_the_first_step():
    free, fixed = GO4Align(beta=0.1), GO4Align(beta=0.1, loss_unit=LOSSES.mean().item())
    for factor in (1.0, 0.5, 0.2):
        assert torch.allclose(weights(free, factor * LOSSES)[1], weights(fixed, factor * LOSSES)[1])
    _, before = weights(GO4Align(beta=0.1), LOSSES, advance=False)
    assert torch.allclose(before, weights(GO4Align(beta=0.1), LOSSES)[1])


def test_go4align_labelled_tasks_share_what_they_had_before():
    weighting = GO4Align(num_groups=3, beta=0.5)
    weights(weighting, LOSSES)
    before = weighting.log_share_T.softmax(0)
    weights(weighting, tensor(3.0, 0.0, 1.0), FIRST_AND_LAST)
    after = weighting.log_share_T.softmax(0)
    assert torch.allclose(before[1], after[1])
    unit = LOSSES.mean().item()
    expected = before[FIRST_AND_LAST] * (-0.5 * tensor(3.0, 1.0) / unit).exp()
    assert torch.allclose(after[FIRST_AND_LAST], expected / expected.sum() * (1 - before[1]))


def spread(values, groups):
    return sum(((values[groups == g] - values[groups == g].mean()) ** 2).sum().item() for g in groups.unique())


@pytest.mark.parametrize('num_groups', [1, 2, 3, 5, 9])
def test_kmeans_finds_the_best_of_all_groupings(num_groups):
    generator = torch.Generator().manual_seed(num_groups)
    for _ in range(5):
        values = torch.randn(6, generator=generator, dtype=torch.float64).exp()
        groups = kmeans_groups(values, num_groups)
        k = min(num_groups, 6)
        all_groupings = [torch.tensor(choice) for choice in itertools.product(range(k), repeat=6)] if k < 5 else []
        best = min((spread(values, choice) for choice in all_groupings), default=None)
        assert len(groups.unique()) == k
        if best is not None:
            assert math.isclose(spread(values, groups), best, abs_tol=1e-12)
        order = torch.randperm(6, generator=generator)
        assert torch.equal(kmeans_groups(values[order], num_groups), groups[order])
    assert torch.equal(kmeans_groups(tensor(5.0), num_groups), torch.tensor([0]))


def test_kmeans_puts_equal_numbers_together_and_orders_groups_by_size_of_the_numbers():
    assert kmeans_groups(tensor(7.0, 1.0, 7.0, 1.0, 3.0), 3).tolist() == [2, 0, 2, 0, 1]
    assert kmeans_groups(tensor(1e8, 1e-4, 2e-4, 1e8 + 1), 2).tolist() == [1, 0, 0, 1]


def test_go4align_refusals():
    for kwargs in (dict(num_groups=0), dict(beta=-1.0), dict(loss_unit=0.0)):
        with pytest.raises(ValueError, match=f'GO4Align: {next(iter(kwargs))} must'):
            GO4Align(**kwargs)
