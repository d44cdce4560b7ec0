"""torchjd as an independent second opinion, where its solvers converge and its scale is known; and where they do not.

The second half is why all methods but PCGrad have solvers of their own: each case is one that a training run meets, in
the normalisation that is best for torchjd (``tools/analysis_tools/compare_torchjd.py``).
"""

import importlib.util
from pathlib import Path

import pytest
import torch

from mmrepmtl.methods import aggregation as ours

torchjd = pytest.importorskip('torchjd.aggregation', reason='torchjd is not installed')

TOOL = Path(__file__).resolve().parents[2] / 'tools/analysis_tools/compare_torchjd.py'
spec = importlib.util.spec_from_file_location('compare_torchjd', TOOL)
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)


def error_of(method, group, case, num_tasks=3):
    """The largest relative error of their solution of a normalised problem, over three seeds."""
    return max(tool.compare(method, rows)[0] for name, rows in tool.cases(group, num_tasks, 3) if name == case)


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


@pytest.mark.parametrize('method, group, case', [('MGDA', 'far apart', 'one small'), ('MGDA', 'degenerate', 'opposed')])
def test_their_min_norm_point_is_not_the_minimum_after_20000_steps(method, group, case):
    assert tool.compare(method, next(tool.cases('ordinary', 6, 1))[1])[0] < 1e-6
    rows = next(rows for name, rows in tool.cases(group, 6, 1) if name == case)
    assert tool.compare(method, rows)[0] > 1e-3


@pytest.mark.parametrize('scale', [1e-4, 1e-6])
def test_their_fair_share_depends_on_the_scale_of_the_losses(scale):
    assert deviation('FairGrad', gradients(3, 0)) < 1e-6
    assert deviation('FairGrad', gradients(3, 0) * scale) > 1e-2


def test_their_fair_share_is_not_one_where_tasks_are_far_apart():
    """Least squares of the equation, in which the smallest gradient hardly counts."""
    assert error_of('FairGrad', 'ordinary', 'random') < 1e-6
    assert error_of('FairGrad', 'far apart', 'one small', num_tasks=2) > 1e-2


def test_their_least_squares_stop_short_of_the_bargain_where_gradients_are_nearly_opposed():
    """Nash-MTL is FairGrad with alpha 1; ours fulfils its equation, w_t (G w)_t equal for all tasks."""
    assert error_of('NashMTL as FairGrad', 'ordinary', 'random') < 1e-6
    (rows,) = [rows for name, rows in tool.cases('degenerate', 3, 1) if name == 'nearly opposed']
    gramian, spread = rows @ rows.T, []
    for weights in (ours.NashMTL()(rows, torch.ones(3))[1], tool.nash_by_fairgrad(gramian)):
        shares = weights * (gramian @ weights)
        spread.append(float(shares.max() / shares.min()) - 1)
    assert spread[0] < 1e-8 and spread[1] > 0.1


def test_their_alignment_takes_the_rounding_of_dependent_gradients_for_a_component():
    """The third task is the sum of the other two up to a float32 backward's rounding: two components, not three."""
    two = gradients(2, 0)
    three = torch.cat([two, two.sum(0, keepdim=True) * (1 + 3e-7 * gradients(1, 1))])
    size = norm_of(ours.AlignedMTL(), three)
    assert size > 0.1 * float(two.norm(dim=1).min())
    assert 3 * float(torchjd.AlignedMTL()(three).norm()) < 1e-5 * size


def test_their_impartial_weights_of_parallel_gradients_are_those_of_rounding():
    """Up to that of a float32 backward; weights of two tasks are always in inverse proportion to their norms."""
    errors = []
    for seed in range(10):
        one = gradients(1, seed)
        rows = torch.cat([one, 3 * one * (1 + 6e-8 * gradients(1, seed + 100))])
        inverse = 1 / rows.norm(dim=1)
        want = inverse @ rows / inverse.sum()
        found = ours.IMTLG()(rows, torch.ones(2))[0], tool.imtl_g(rows @ rows.T) @ rows
        errors.append([float((combined - want).norm() / want.norm()) for combined in found])
    (own, theirs) = map(max, zip(*errors, strict=True))
    assert own < 1e-7 and theirs > 1e-3


@pytest.mark.parametrize(
    'make, package, method, group, case',
    [
        (torchjd.UPGrad, 'quadprog', None, None, None),
        (torchjd.DualProj, 'quadprog', None, None, None),
        (lambda: torchjd.CAGrad(c=0.4), 'clarabel', 'CAGrad', 'degenerate', 'opposed'),
        (lambda: torchjd.NashMTL(3), 'ecos', 'NashMTL', 'degenerate', 'opposed'),
    ],
    ids=['UPGrad', 'DualProj', 'CAGrad', 'NashMTL'],
)
def test_their_other_solvers_are_other_packages(make, package, method, group, case):
    """With these installed: regularised by default, or wrong where gradients are opposed."""
    try:
        theirs = make()
    except ImportError as error:
        assert package in str(error)
        return
    if method is None:
        rows = next(rows for name, rows in tool.cases('degenerate', 3, 1) if name == 'nearly opposed')
        combined = getattr(ours, type(theirs).__name__)()(rows, torch.ones(3))[0]
        assert (theirs(rows) - combined).norm() > 1e-2 * combined.norm()
    else:
        assert error_of(method, group, case, 6) > 1e-4


def test_their_vaccine_cannot_load_its_state_and_conflict_free_direction_needs_the_gradients():
    vaccine = torchjd.GradVacWeighting()
    vaccine(gradients(2, 0) @ gradients(2, 0).T)
    with pytest.raises(RuntimeError, match='Unexpected key'):
        torchjd.GradVacWeighting().load_state_dict(vaccine.state_dict())
    assert 'ConFIG' in torchjd.__all__ and 'ConFIGWeighting' not in torchjd.__all__
