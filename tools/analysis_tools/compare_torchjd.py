#!/usr/bin/env python
"""How far torchjd's solvers are from ours, at their tightest settings on the best normalised problem.

Every torchjd weighting that is a method of ours gets the Gramian in float64, without tasks that have no gradient; as
cosines where the method's equation lets the norms be multiplied in afterwards, else over its largest diagonal entry.
Its scale is corrected to ours. The combined gradients are compared, in units of ours (where ours cancel: of the largest
weighted gradient in theirs), for T = 2, 3 and 6 tasks, each case with losses times 1e-6, 1 and 1e6. Ours are tested
against enumeration (``tests/methods/``); for PCGrad, which calls torchjd, the algorithm on full
gradients stands in.

Rows whose solver is not installed say so; ``pip install quadprog qpsolvers cvxpy clarabel ecos`` completes the table.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from statistics import median

import torch
import torchjd.aggregation as jd
from torch import Tensor
from torchjd.linalg import QuadprogProjector

from mmrepmtl.methods import aggregation as ours
from mmrepmtl.methods.aggregation.solvers import cosines_and_norms, on_present_tasks

GROUPS, SCALES = ('ordinary', 'far apart', 'degenerate'), (1e-6, 1.0, 1e6)
ALPHA, C = 2.0, 0.4  # FairGrad's and CAGrad's defaults


def normal(*shape: int, seed: int) -> Tensor:
    """Random numbers of their own seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cases(group: str, num_tasks: int, seeds: int) -> Iterator[tuple[str, Tensor]]:
    """Names and gradients (T, 30) of a group."""
    rounding = 1 + 6e-8 * normal(1, 30, seed=99)  # that of a float32 backward pass
    for seed in range(seeds):
        rows = normal(num_tasks, 30, seed=seed) + (0.3 if seed % 2 else 0.0)
        rest, total = rows[:-1], rows[:-1].sum(0, keepdim=True)
        if group == 'ordinary':
            yield 'random', rows
        elif group == 'far apart':
            yield 'spread', rows * torch.logspace(0, -4, num_tasks, dtype=torch.float64)[:, None]
            yield 'one small', rows * torch.tensor([1.0] * (num_tasks - 1) + [1e-4])[:, None]
        else:
            yield 'parallel', torch.cat([rest, 3 * rows[:1]])
            yield 'parallel up to rounding', torch.cat([rest, 3 * rows[:1] * rounding])
            yield 'parallel far apart', torch.cat([rest, 1e-4 * rows[:1] * rounding])
            yield 'dependent up to rounding', torch.cat([rest, total * rounding])
            yield 'opposed', torch.cat([rest, -2 * rows[:1]])
            yield 'opposed up to rounding', torch.cat([rest, -total * rounding])
            yield 'nearly opposed', torch.cat([rest, 1e-3 * rows[-1:] - 2 * rows[:1]])
            yield 'absent', rows * (torch.arange(num_tasks) != 1)[:, None]


def scaled(gramian_PP: Tensor) -> Tensor:
    """The Gramian over its largest diagonal entry."""
    return gramian_PP / gramian_PP.diagonal().max()


def surgery(rows_TP: Tensor) -> tuple[Tensor, Tensor]:
    """PCGrad on full gradients, without those that are zero; with weights 1, for the size of the gradients."""
    rows_PP, generator = rows_TP[rows_TP.any(1)], torch.Generator().manual_seed(0)
    combined_P = torch.zeros_like(rows_TP[0])
    for i, changed_P in enumerate(rows_PP):
        for j in torch.randperm(len(rows_PP), generator=generator).tolist() if len(rows_PP) > 1 else ():
            if j != i:
                changed_P = changed_P - (changed_P @ rows_PP[j]).clamp(max=0) / rows_PP[j].square().sum() * rows_PP[j]
        combined_P += changed_P
    return combined_P, torch.ones_like(rows_TP[:, 0])


def pcgrad(gramian_PP: Tensor) -> Tensor:
    """PCGrad in the same random orders: those of a generator with seed 0."""
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(torch.Generator().manual_seed(0).get_state())
        return jd.PCGradWeighting()(scaled(gramian_PP))


def imtl_g(gramian_PP: Tensor) -> Tensor:
    """IMTL-G in the cosines, with the sign of ours."""
    cosines_PP, norms_P = cosines_and_norms(gramian_PP)
    weights_P = jd.IMTLGWeighting()(cosines_PP) * (norms_P.min() / norms_P)
    return weights_P / weights_P.sum().abs() if weights_P.any() else weights_P


def fairgrad(gramian_PP: Tensor) -> Tensor:
    """FairGrad of the scaled problem; the norms of the tasks do not factor out of its equation."""
    unscale = gramian_PP.diagonal().max() ** (-ALPHA / (1 + ALPHA))
    return jd.FairGradWeighting(ALPHA, max_iters=100_000)(scaled(gramian_PP)) * unscale


def nash_by_fairgrad(gramian_PP: Tensor) -> Tensor:
    """Nash-MTL as FairGrad with alpha 1, in the cosines."""
    cosines_PP, norms_P = cosines_and_norms(gramian_PP)
    return jd.FairGradWeighting(1.0, max_iters=100_000)(cosines_PP) / norms_P


def nash_mtl(gramian_PP: Tensor) -> Tensor:
    """Nash-MTL, given a square matrix of which the cosines are the Gramian."""
    cosines_PP, norms_P = cosines_and_norms(gramian_PP)
    values_P, vectors_PP = torch.linalg.eigh(cosines_PP)
    theirs = jd.NashMTL(len(norms_P), max_norm=0.0, optim_niter=200).weighting
    # Theirs divides by the Frobenius norm, and takes it back in the constraint.
    return theirs(vectors_PP * values_P.clamp(min=0).sqrt()) / norms_P


def in_cosines(weighting: type, gramian_PP: Tensor) -> Tensor:
    """UPGrad or DualProj of the cosines, the norms as its preference, with as little regularisation as works."""
    cosines_PP, norms_P = cosines_and_norms(gramian_PP)
    relative_P = norms_P / norms_P.max()
    for reg_eps in (0.0, 1e-15, 1e-14, 1e-13, 1e-12, 1e-10, 1e-8, 1e-4):
        projector = QuadprogProjector(norm_eps=0.0, reg_eps=reg_eps)
        try:
            theirs = weighting(pref_vector=relative_P / len(relative_P), projector=projector)
            return theirs(cosines_PP) / relative_P
        except Exception as error:  # the solver's own exceptions: not positive definite
            last = error
    raise last


def of_class(make: Callable[[], ours.Aggregator]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Combines gradients (T, P) by a new object of one of our classes."""
    return lambda rows_TP: make()(rows_TP, torch.ones(len(rows_TP), dtype=rows_TP.dtype))


#: torchjd's weights on a Gramian (P, P) of present tasks, in our scale; our combination of rows (T, P), and weights.
METHODS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], tuple[Tensor, Tensor]]]] = {
    'PCGrad': (pcgrad, surgery),
    'IMTLG': (imtl_g, of_class(ours.IMTLG)),
    'AlignedMTL': (lambda gram: len(gram) * jd.AlignedMTLWeighting()(scaled(gram)), of_class(ours.AlignedMTL)),
    'FairGrad': (fairgrad, of_class(lambda: ours.FairGrad(alpha=ALPHA, max_norm=None))),
    'UPGrad': (lambda gram: in_cosines(jd.UPGradWeighting, gram), of_class(ours.UPGrad)),
    'DualProj': (lambda gram: in_cosines(jd.DualProjWeighting, gram), of_class(ours.DualProj)),
    'CAGrad': (
        lambda gram: len(gram) / (1 + C**2) * jd.CAGradWeighting(C, norm_eps=1e-9)(scaled(gram)),
        of_class(lambda: ours.CAGrad(c=C)),
    ),
    'NashMTL': (nash_mtl, of_class(lambda: ours.NashMTL(max_norm=None))),
    'NashMTL as FairGrad': (nash_by_fairgrad, of_class(lambda: ours.NashMTL(max_norm=None))),
    'MGDA': (lambda gram: jd.MGDAWeighting(epsilon=1e-9, max_iters=20_000)(scaled(gram)), of_class(ours.MGDA)),
}


def compare(name: str, rows_TP: Tensor) -> tuple[float, float, float]:
    """Relative error of the combined gradient (inf: theirs fails or is not finite), milliseconds of theirs and ours."""
    theirs, own = METHODS[name]
    times = [time.perf_counter()]
    want_P, want_T = own(rows_TP)
    times.append(time.perf_counter())
    try:
        alone = name.startswith(('FairGrad', 'NashMTL'))  # whose last task has the weight of the equation
        losses_T = torch.ones(len(rows_TP))  # which no method here reads
        found_T = on_present_tasks(lambda gramian_PP, _: theirs(gramian_PP), rows_TP @ rows_TP.T, losses_T, alone)
    except ImportError:
        raise
    except Exception:  # whatever a solver raises: it has no result
        found_T = torch.full_like(rows_TP[:, 0], torch.nan)
    found_P = found_T @ rows_TP
    times.append(time.perf_counter())
    size, norms_T = float(want_P.norm()), rows_TP.norm(dim=1)
    if size <= 1e-6 * float((want_T.abs() * norms_T).max()):
        size = float((found_T.abs() * norms_T).max())
    error = float((found_P - want_P).norm()) / size if size else 0.0
    return (error if error == error else torch.inf), 1000 * (times[2] - times[1]), 1000 * (times[1] - times[0])


def row(name: str, seeds: int) -> tuple[list[float], list[float]]:
    """The largest error in each group, and the median milliseconds of theirs and ours."""
    worst, times = [], []
    for group in GROUPS:
        worst.append(0.0)
        for num_tasks in (2, 3, 6):
            for _, rows_TP in cases(group, num_tasks, seeds):
                for scale in SCALES:
                    error, *both = compare(name, scale * rows_TP)
                    worst[-1] = max(worst[-1], error)
                    times.append(both)
    return worst, [median(column) for column in zip(*times, strict=True)]


def main() -> None:
    """Prints a row for each method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--methods', nargs='+', choices=METHODS, default=list(METHODS))
    parser.add_argument('--seeds', type=int, default=5, help='gradients of each case (default: 5)')
    args = parser.parse_args()
    print(f'{"method":<21}', *(f'{column:>11}' for column in (*GROUPS, 'theirs, ms', 'ours, ms')))
    for name in args.methods:
        try:
            worst, times = row(name, args.seeds)
        except ImportError as error:
            print(f'{name:<21} not measured: {error}')
            continue
        print(f'{name:<21}', *(f'{e:11.1e}' for e in worst), *(f'{ms:11.2f}' for ms in times), flush=True)


if __name__ == '__main__':
    main()
