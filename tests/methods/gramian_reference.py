"""Slow solutions on full gradients by enumeration, and the gradients that the Gramian methods are tested on."""

import itertools

import torch
from torch import Tensor


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def jacobians() -> dict[str, Tensor]:
    """Gradients (T, P): regular ones, of very different norms, dependent ones, more tasks than parameters."""
    found = {f'normal-{seed}': normal(4, 7, seed=seed) for seed in range(3)}
    found['two'] = normal(2, 3, seed=3)
    found['conflicting'] = normal(4, 6, seed=4) - 2 * normal(1, 6, seed=5) * torch.tensor([[1.0], [-1], [1], [0]])
    found['aligned'] = normal(5, 6, seed=6) + 3 * normal(1, 6, seed=7)
    found['far-apart'] = normal(4, 7, seed=8) * torch.tensor([[1.0], [1e-4], [1e-2], [1e-1]], dtype=torch.float64)
    found['far-apart-conflicting'] = found['conflicting'] * torch.tensor([[1e-4], [1.0], [1e-1], [1e-2]])
    found['duplicated'] = normal(3, 5, seed=9)[[0, 1, 0, 2, 0]]
    found['parallel'] = normal(3, 5, seed=10)[[0, 1, 0, 2]] * torch.tensor([[1.0], [1], [3], [1]])
    found['more-tasks-than-parameters'] = normal(5, 2, seed=11).abs() * torch.tensor([1.0, -1.0])
    found['zero-in-hull'] = normal(5, 3, seed=12)
    found['opposed'] = normal(2, 4, seed=13)[[0, 1, 0]] * torch.tensor([[1.0], [1], [-2]])
    return found


JACOBIANS = jacobians()

#: Those of which no convex combination is zero.
REGULAR = [name for name in JACOBIANS if name not in ('zero-in-hull', 'opposed')]

#: Names with a common scale: losses from 1e-6 to 1e6, with gradients of 1e-8 at the smallest.
CASES = [(name, 1.0) for name in JACOBIANS] + [
    (name, scale) for name in ('normal-0', 'conflicting', 'far-apart', 'opposed') for scale in (1e-14, 1e6)
]


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def combine(method, gradients, losses=None):
    method.setup(len(gradients))
    return method(gradients, torch.ones(len(gradients), dtype=torch.float64) if losses is None else losses)


def unit(gradients):
    return gradients / gradients.norm(dim=-1, keepdim=True)


def supports(num_tasks: int):
    return itertools.chain.from_iterable(itertools.combinations(range(num_tasks), k) for k in range(num_tasks + 1))


def shortest_in_hull(gradients_TP: Tensor) -> Tensor:
    """The point of least norm in the convex hull: the shortest of the faces' own, where these lie in the face."""
    best_P = None
    for support in supports(len(gradients_TP)):
        if not support:
            continue
        face_SP = gradients_TP[list(support)]
        others = torch.linalg.lstsq((face_SP[1:] - face_SP[0]).T, -face_SP[0, :, None], driver='gelsd').solution[:, 0]
        weights_S = torch.cat([1 - others.sum()[None], others])
        point_P = weights_S @ face_SP
        if (weights_S >= -1e-12).all() and (best_P is None or point_P.norm() < best_P.norm()):
            best_P = point_P
    return best_P


def project_on_polyhedron(vector_P: Tensor, gradients_TP: Tensor, values_T: Tensor) -> Tensor | None:
    """The nearest point with <g_t, x> >= v_t: the nearest of the projections onto its faces that satisfies them."""
    best_P, size = None, gradients_TP.norm(dim=1)
    for support in supports(len(gradients_TP)):
        rows_SP, values_S = gradients_TP[list(support)], values_T[list(support)]
        missing_S = values_S - rows_SP @ vector_P
        step_P = torch.linalg.pinv(rows_SP, rtol=1e-12) @ missing_S if support else torch.zeros_like(vector_P)
        point_P = vector_P + step_P
        if ((gradients_TP @ point_P - values_T) / size < -1e-10 * (1 + vector_P.norm())).any():
            continue
        if best_P is None or step_P.norm() < (best_P - vector_P).norm():
            best_P = point_P
    return best_P


def relative_error(got: Tensor, want: Tensor, scale: Tensor | float = 0.0) -> float:
    """Compares whole vectors; ``scale`` is the size to compare with where ``want`` may be zero."""
    return float((got - want).norm() / max(float(want.norm()), float(scale), 1e-300))


def conflict_averse(gradients_TP: Tensor, c: float) -> Tensor:
    """CAGrad's d by bisection of the worst improvement, with projections by enumeration."""
    mean_P = gradients_TP.mean(0)
    radius, ones_T = c * mean_P.norm(), torch.ones(len(gradients_TP), dtype=torch.float64)
    low = (gradients_TP @ mean_P).min()
    high = (gradients_TP @ mean_P + radius * gradients_TP.norm(dim=1)).min()
    for _ in range(60):
        middle = (low + high) / 2
        point_P = project_on_polyhedron(mean_P, gradients_TP, middle * ones_T)
        if point_P is not None and (point_P - mean_P).norm() <= radius:
            low = middle
        else:
            high = middle
    return project_on_polyhedron(mean_P, gradients_TP, low * ones_T)


def vaccinate(rows: Tensor, targets_TT: Tensor, beta: float, generator: torch.Generator) -> Tensor:
    """GradVac, Algorithm 1, on full gradients; ``targets_TT`` is updated."""
    num_tasks = len(rows)
    orders = [torch.randperm(num_tasks, generator=generator).tolist() for _ in range(num_tasks)]
    changed = rows.clone()
    for i in range(num_tasks):
        for j in orders[i]:
            if i == j:
                continue
            cosine = torch.cosine_similarity(changed[i], rows[j], dim=0)
            target = targets_TT[i, j].clone()
            if cosine < target:
                sine, target_sine = (1 - cosine**2).sqrt(), (1 - target**2).sqrt()
                factor = changed[i].norm() * (target * sine - cosine * target_sine) / (rows[j].norm() * target_sine)
                changed[i] = changed[i] + factor * rows[j]
            targets_TT[i, j] = (1 - beta) * target + beta * cosine
    return changed.sum(0)


def grad_norm_step(weights_T: Tensor, norms_T: Tensor, rates_T: Tensor, alpha: float, lr: float) -> Tensor:
    """One step of GradNorm's weights by automatic differentiation in their logarithms."""
    log_T = weights_T.log().requires_grad_()
    sizes_T = log_T.exp() * norms_T
    mean = sizes_T.mean().detach()
    loss = (sizes_T - mean * (rates_T / rates_T.mean()) ** alpha).abs().sum() / mean
    updated_T = (log_T - lr * torch.autograd.grad(loss, log_T)[0]).detach().exp()
    return updated_T * len(updated_T) / updated_T.sum()


def direction_oriented(batches: Tensor, weights_T: Tensor, lambda_: float, n_iter: int, lr: float, momentum: float):
    """SDMGrad on full gradients of three batches (3, T, P): the step (P,), the new weights (T,); ``lr`` is a bound."""
    first, second, last = batches
    unit = (first.norm(dim=1) * second.norm(dim=1)).sqrt().mean()
    velocity = torch.zeros_like(weights_T)
    # The largest gradient that a unit vector of weights can have, as the root of an eigenvalue.
    jacobian = (first / unit) @ (second / unit).T
    lr = min(lr, float(torch.linalg.eigvalsh(jacobian.T @ jacobian).max()) ** -0.5)
    for _ in range(n_iter):
        target_P = weights_T @ second + lambda_ * second.mean(0)
        velocity = momentum * velocity + (first / unit) @ (target_P / unit)
        point = weights_T - lr * velocity
        low, high = point.min() - 1, point.max()
        for _ in range(100):  # the shift of the projection onto the simplex
            middle = (low + high) / 2
            low, high = (middle, high) if (point - middle).clamp(min=0).sum() > 1 else (low, middle)
        weights_T = (point - low).clamp(min=0)
    return len(last) * (weights_T @ last + lambda_ * last.mean(0)) / (1 + lambda_), weights_T
