"""torchjd as an independent second opinion, where its solvers converge and its scale is known; and where they do not.

The second half is why the methods do not call it: each case is one that a training run meets.
"""

import pytest
import torch

from mmrepmtl.methods import aggregation as ours

torchjd = pytest.importorskip('torchjd.aggregation', reason='torchjd is not installed')

# (theirs, ours, their scale to ours for T tasks)
PAIRS = {
    'MGDA': (lambda: torchjd.MGDA(epsilon=1e-9, max_iters=20_000), ours.MGDA, lambda T: 1),
    'IMTLG': (torchjd.IMTLG, ours.IMTLG, lambda T: 1),
    'AlignedMTL': (torchjd.AlignedMTL, ours.AlignedMTL, lambda T: T),  # they average, the paper's code sums
    'ConFIG': (torchjd.ConFIG, ours.ConFIG, lambda T: 1),
    'FairGrad': (lambda: torchjd.FairGrad(alpha=2.0), lambda: ours.FairGrad(alpha=2.0, max_norm=None), lambda T: 1),
}


def gradients(num_tasks, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_tasks, 30, generator=generator, dtype=torch.float64) + 0.3


def deviation(name, gradients_TP):
    theirs, own, factor = PAIRS[name]
    wanted = theirs()(gradients_TP) * factor(len(gradients_TP))
    combined = own()(gradients_TP, torch.ones(len(gradients_TP), dtype=torch.float64))[0]
    return float((combined - wanted).norm() / combined.norm())


@pytest.mark.parametrize('num_tasks', [2, 3, 6])
@pytest.mark.parametrize('name', PAIRS)
def test_both_agree_on_ordinary_gradients(name, num_tasks):
    # Frank-Wolfe closes in slowly: after 20,000 iterations it is still that far away.
    tolerance = 3e-3 if name == 'MGDA' else 1e-6
    assert max(deviation(name, gradients(num_tasks, seed)) for seed in range(3)) < tolerance


def norm_of(aggregator, gradients_TP):
    combined = aggregator(gradients_TP, torch.ones(len(gradients_TP), dtype=gradients_TP.dtype))[0]
    return float(combined.norm())


def test_their_default_min_norm_point_is_not_the_minimum():
    excess = [
        float(torchjd.MGDA()(gradients(3, seed)).norm()) / norm_of(ours.MGDA(), gradients(3, seed)) - 1
        for seed in range(20)
    ]
    assert min(excess) > -1e-9 and max(excess) > 1e-3


@pytest.mark.parametrize('scale', [1e-4, 1e-6])
def test_their_fair_share_depends_on_the_scale_of_the_losses(scale):
    assert deviation('FairGrad', gradients(3, 0)) < 1e-6
    assert deviation('FairGrad', gradients(3, 0) * scale) > 1e-2


def test_their_alignment_takes_the_rounding_of_dependent_gradients_for_a_component():
    """The third task is the sum of the other two up to a float32 backward's rounding: two components, not three."""
    two = gradients(2, 0)
    three = torch.cat([two, two.sum(0, keepdim=True) * (1 + 3e-7 * gradients(1, 1))])
    size = norm_of(ours.AlignedMTL(), three)
    assert size > 0.1 * float(two.norm(dim=1).min())
    assert 3 * float(torchjd.AlignedMTL()(three).norm()) < 1e-5 * size


def test_their_impartial_weights_of_parallel_gradients_are_not_those_of_nearly_parallel_ones():
    one = gradients(1, 0)
    parallel = torch.cat([one, 3 * one])
    near = parallel + 1e-5 * gradients(2, 1)
    limit = torchjd.IMTLG()(near)
    own = ours.IMTLG()(parallel, torch.ones(2, dtype=torch.float64))[0]
    assert (own - limit).norm() < 1e-3 * limit.norm()
    assert (torchjd.IMTLG()(parallel) - limit).norm() > 0.1 * limit.norm()
