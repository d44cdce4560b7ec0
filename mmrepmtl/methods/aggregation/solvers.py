"""The small problems in the Gramian of the task gradients, solved exactly in float64.

All of them are solved in the cosines of the gradients, so that neither the common scale of the losses nor tasks of very
different norms cost precision. The angle remains: gradients that cancel to below 1e-6 of their norms cannot be told
from ones that cancel, since the Gramian holds squares; they count as cancelling.

Dimensions: T tasks, S the subset of them that has a gradient (or is on the support of a solution).
"""

from collections.abc import Callable

import torch
from torch import Tensor

#: Squared norms of combinations of unit gradients, and eigenvalues of their cosines, that are rounding below this.
ROUNDING = 1e-12

#: Rounding of a sum of products of numbers of order one.
NOISE = 1e-13


def present_tasks(gramian_TT: Tensor) -> Tensor:
    """The tasks that have a gradient, (T,) bool; the others are unlabelled and in no problem.

    Raises:
        ValueError: If the Gramian (T, T) is not finite.
    """
    if not torch.isfinite(gramian_TT).all():
        raise ValueError('the Gramian of the task gradients is not finite; check the gradients before combining them')
    return gramian_TT.diagonal() > 0


def on_present_tasks(
    solve: Callable[[Tensor, Tensor], Tensor],
    gramian_TT: Tensor,
    losses_T: Tensor,
    solve_last: bool = False,
) -> Tensor:
    """Solves the problem of the tasks that have a gradient, as if there were no others.

    Args:
        solve: Maps the Gramian (S, S) and the losses (S,) of the present tasks to their weights (S,).
        gramian_TT: Inner products of the gradients, (T, T).
        losses_T: Losses, (T,).
        solve_last: Whether ``solve`` is also asked for the only present one of several tasks, where its weight has a
            unit.

    Returns:
        Weights (T,): 0 for absent tasks; 1 for a task that is the only one, which needs no combination (with
        ``solve_last`` only where T = 1).
    """
    present_T = present_tasks(gramian_TT)
    weights_T = gramian_TT.new_zeros(len(gramian_TT))
    if present_T.sum() == 1 and not (solve_last and len(present_T) > 1):
        weights_T[present_T] = 1.0
    elif present_T.any():
        weights_T[present_T] = solve(gramian_TT[present_T][:, present_T], losses_T[present_T])
    return weights_T


def cosines_and_norms(gramian_TT: Tensor) -> tuple[Tensor, Tensor]:
    """Splits a Gramian (T, T) with a positive diagonal into the cosines (T, T) and the norms (T,) of the gradients."""
    norms_T = gramian_TT.diagonal().sqrt()
    cosines_TT = gramian_TT / norms_T / norms_T[:, None]
    cosines_TT = (cosines_TT + cosines_TT.T) / 2
    return cosines_TT.fill_diagonal_(1.0), norms_T


def clip_to_norm(weights_T: Tensor, gramian_TT: Tensor, max_norm: float | None) -> Tensor:
    """Scales the weights down so that the norm of the combined gradient is at most ``max_norm`` (None: any)."""
    norm = (weights_T @ gramian_TT @ weights_T).clamp(min=0).sqrt()
    return weights_T if max_norm is None or norm <= max_norm else weights_T * (max_norm / norm)


def nonnegative_qp(cosines_TT: Tensor, linear_T: Tensor) -> Tensor | None:
    """Minimises ``x^T C x / 2 - q^T x`` over ``x >= 0`` by the primal active-set method.

    One variable enters at a time and moves along the edge on which the others stay optimal, until it is optimal itself
    or another one reaches zero and leaves. That also works where C is singular: the edge is then a ray.

    Args:
        cosines_TT: C, positive semi-definite with unit diagonal, (T, T).
        linear_T: q, (T,).

    Returns:
        x (T,), or None where the problem has no lower bound: C d = 0 and q^T d > 0 for some d >= 0.

    Raises:
        RuntimeError: If it does not end, which exact arithmetic excludes.
    """
    x_T, ray_T = _active_set(cosines_TT, linear_T)
    return None if ray_T is not None else x_T


def _active_set(cosines_TT: Tensor, linear_T: Tensor) -> tuple[Tensor, Tensor | None]:
    """The point that :func:`nonnegative_qp` ends at, and the ray (T,) without lower bound, or None."""
    num_tasks = len(linear_T)
    x_T = torch.zeros_like(linear_T)
    support: list[int] = []
    for iteration in range(100 * num_tasks):
        descent_T = linear_T - cosines_TT @ x_T
        wanted_T = descent_T > NOISE * (linear_T.abs() + cosines_TT.abs() @ x_T)
        wanted_T[support] = False
        if not wanted_T.any():
            return x_T, None
        # The steepest one is quick; the first one (Bland's rule) cannot cycle.
        steepest = int(torch.where(wanted_T, descent_T, -torch.inf).argmax())
        entering = steepest if iteration < 10 * num_tasks else int(wanted_T.nonzero()[0])
        ray_T = _enter(cosines_TT, linear_T, x_T, support, entering)
        if ray_T is not None:
            return x_T, ray_T
    raise RuntimeError('nonnegative_qp: the active set did not settle; the matrix is not positive semi-definite')


def _enter(cosines_TT: Tensor, linear_T: Tensor, x_T: Tensor, support: list[int], entering: int) -> Tensor | None:
    """Makes one variable optimal, changing ``x_T`` and ``support``; returns the ray if it may grow without end."""
    while True:
        edge_T = torch.zeros_like(x_T)
        edge_T[entering] = 1.0
        if support:
            edge_T[support] = -torch.linalg.solve(cosines_TT[support][:, support], cosines_TT[support, entering])
        curvature = float(cosines_TT[entering] @ edge_T)
        descent = max(float(linear_T[entering] - cosines_TT[entering] @ x_T), 0.0)
        step = descent / curvature if curvature > ROUNDING else torch.inf
        leaving = None
        for i in support:
            if edge_T[i] < 0 and float(-x_T[i] / edge_T[i]) <= step:
                step, leaving = float(-x_T[i] / edge_T[i]), i
        if step == torch.inf:
            return edge_T
        x_T += step * edge_T
        if leaving is None:
            support.append(entering)
            return None
        x_T[leaving] = 0.0
        support.remove(leaving)


def min_norm_weights(gramian_TT: Tensor) -> tuple[Tensor, bool]:
    """The point of least norm in the convex hull of the gradients.

    If x is that point, y = x / |x|^2 is the shortest vector with <g_t, y> >= 1 for all tasks, a problem whose dual is
    :func:`nonnegative_qp` with q = 1; without a lower bound, its ray is a convex combination that is zero.

    Args:
        gramian_TT: Gramian with a positive diagonal, (T, T).

    Returns:
        The weights (T,), which are not negative and sum to 1, and whether the hull contains zero.
    """
    cosines_TT, norms_T = cosines_and_norms(gramian_TT)
    x_T, ray_T = _active_set(cosines_TT, norms_T.min() / norms_T)
    x_T = x_T if ray_T is None else ray_T
    weights_T = x_T * (norms_T.min() / norms_T)
    return weights_T / weights_T.sum(), bool(x_T @ cosines_TT @ x_T <= ROUNDING * x_T.sum() ** 2)


def project_on_dual_cone(cosines_TT: Tensor, coefficients_T: Tensor) -> Tensor:
    """Projects a combination of gradients onto the vectors that conflict with no gradient.

    ``v = argmin v^T C v`` subject to ``v >= u``: the nearest vector to ``sum_t u_t e_t`` whose inner product with every
    unit gradient ``e_t`` is at least 0 is ``sum_t v_t e_t``.

    Args:
        cosines_TT: C, (T, T).
        coefficients_T: u, of the unit gradients, (T,).

    Returns:
        v, (T,).
    """
    # The problem has a solution; a ray that rounding lets appear ends the search with a conflict below 1e-6, since the
    # constraint that is violated most comes first.
    return coefficients_T + _active_set(cosines_TT, -cosines_TT @ coefficients_T)[0]


def pseudo_solve(cosines_TT: Tensor, right_T: Tensor) -> Tensor:
    """``C^+ b``, the least-squares solution of least norm (T,), with the rank that rounding leaves."""
    values_T, vectors_TT = torch.linalg.eigh(cosines_TT)
    inverse_T = torch.where(values_T > ROUNDING * values_T.max(), 1 / values_T, 0)
    solution_T: Tensor = vectors_TT @ (inverse_T * (vectors_TT.T @ right_T))
    return solution_T


def fair_coefficients(cosines_TT: Tensor, factors_T: Tensor, alpha: float) -> Tensor | None:
    """Solves ``C b = k b^(-1 / alpha)``, b > 0, by Newton's method.

    It is the stationary point of a strictly convex function whose Hessian changes by a bounded factor as long as no
    component of b shrinks by more than a fixed share, so that steps of limited shrinkage always descend.

    Args:
        cosines_TT: C, (T, T).
        factors_T: k > 0, (T,).
        alpha: In [0.5, 20]; beyond, solutions leave the range of float64 or are reached too slowly.

    Returns:
        b (T,), or None where there is no solution: a convex combination of the gradients is zero.

    Raises:
        RuntimeError: If Newton's method does not converge.
    """
    if min_norm_weights(cosines_TT)[1]:
        return None
    power = 1 / alpha
    b_T = factors_T ** (1 / (1 + power))  # exact where the gradients are orthogonal
    b_T = b_T * ((factors_T * b_T ** (1 - power)).sum() / (b_T @ cosines_TT @ b_T)) ** (1 / (1 + power))
    shrinkage = 1 / (2 * (1 + power))
    for _ in range(1000):
        push_T = factors_T * b_T**-power
        missing_T = push_T - cosines_TT @ b_T
        if (missing_T.abs() <= 1e-15 * (cosines_TT.abs() @ b_T)).all():
            break
        hessian_TT = cosines_TT + torch.diag(power * push_T / b_T)
        relative_T = torch.linalg.solve(hessian_TT, missing_T) / b_T
        b_T = b_T * (1 + relative_T * min(1.0, shrinkage / max(float(-relative_T.min()), shrinkage)))
        if relative_T.abs().max() < 1e-15:
            break
    error_T = (cosines_TT @ b_T - factors_T * b_T**-power).abs() / (cosines_TT.abs() @ b_T)
    if not error_T.max() < NOISE:
        raise RuntimeError(f'fair_coefficients: not converged, relative error {float(error_T.max()):.1e}')
    return b_T


def project_on_simplex(point_T: Tensor) -> Tensor:
    """The nearest point (T,) whose components are not negative and sum to 1."""
    sorted_T = point_T.sort(descending=True).values
    shifts_T = (sorted_T.cumsum(0) - 1) / torch.arange(1, len(point_T) + 1, dtype=point_T.dtype)
    return (point_T - shifts_T[sorted_T > shifts_T][-1]).clamp(min=0)
