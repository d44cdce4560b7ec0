"""Torchjd's solvers as an aggregator. Dimensions: T tasks, S the subset of them that has a gradient."""

import inspect
from collections.abc import Mapping
from importlib.metadata import version
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .base import GramianAggregator
from .solvers import present_tasks


class TorchJD(GramianAggregator):
    """Any of torchjd's Gramian weightings, as an aggregator here.

    A config has, for example, ``dict(type='TorchJD', weighting='KrumWeighting', arguments=dict(n_byzantine=1))``.
    Source: https://torchjd.org, where each weighting names its paper. PCGrad is computed this way; for the other
    methods that both have, docs/methods.md says how far torchjd's solver is from ours.

    The weighting gets the Gramian in float64 on the CPU, over its largest diagonal entry, so that the unit of the
    losses does not matter. That changes nothing for those whose weights do not depend on the scale of the gradients
    (AlignedMTL, CAGrad, DualProj, IMTLG, Krum, MGDA, PCGrad, UPGrad), except that their small constants are then
    relative. ``FairGradWeighting`` does depend on it: divided, its result is proportional to the gradients;
    ``normalize=False`` gives its paper's equation. Its random numbers are drawn from a state of its own, equal on all
    ranks. Scale: torchjd's, a mean for some and a sum for others; see ``factor``. Heads are unweighted.

    Tasks without a gradient are left out, and one that is the only one is not combined (without ``normalize`` only
    where T = 1). A weighting that keeps state from step to step (``GradVacWeighting``, ``PCDWeighting``) sees all tasks
    instead, an absent one as a gradient of zero, since torchjd forgets its state where the number of tasks changes;
    that state is in ``state_dict()``. Combined once per accumulation window at parameter level, per micro-batch at
    representation level.

    Args:
        weighting: Name of a class, or the class, in ``torchjd.aggregation`` whose input is a Gramian.
            ``CRMOGMWeighting``, which wraps another one, and those that read gradients of two batches are none of them.
        arguments: Its arguments. A list of numbers becomes a tensor (``pref_vector=[2, 1, 1]``; one entry per task, so
            no task may be without a gradient), a dict with a ``type`` an object of ``torchjd.linalg``
            (``projector=dict(type='QuadprogProjector', reg_eps=1e-12)``).
        factor: Factor of the weights: a number, or ``'tasks'`` for the number of tasks with a gradient,
            which makes a sum of a mean.
        normalize: Whether to divide by the largest diagonal entry; None: unless the weighting keeps state, which a
            divisor of each step would mix up.
        level: The place of the gradients, as in :class:`Aggregator`.
        weight_heads: As in :class:`Aggregator`.
        seed: Seed of the random numbers; the same on all ranks.

    Raises:
        ImportError: If torchjd, or a solver that the weighting needs, is not installed; says what to install.
        ValueError: For an unknown weighting or argument (lists what there is), a weighting whose state cannot be saved,
            a bad ``factor``, or, in training, gradients that the weighting refuses.
        RuntimeError: In training, if the weights are not finite.
    """

    def __init__(
        self,
        weighting: str | type,
        arguments: Mapping[str, Any] | None = None,
        factor: float | Literal['tasks'] = 1.0,
        normalize: bool | None = None,
        level: Literal['parameter', 'representation'] = 'parameter',
        weight_heads: bool | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(level, weight_heads)
        if factor != 'tasks' and (isinstance(factor, str) or not factor > 0):
            raise ValueError(f"TorchJD: factor must be a positive number or 'tasks', got {factor!r}")
        self.weighting, self.factor = _plain_name(weighting), factor
        self.solver = make_solver(weighting, arguments)
        self.keeps_state = _keeps_state(self.solver)
        self.normalize = not self.keeps_state if normalize is None else normalize
        # Without normalisation the scale matters, and that of the last task left is the weighting's business too.
        self.solves_last = not self.normalize
        self.generator = torch.Generator().manual_seed(seed)

    def weights(self, gramian_TT: Tensor, losses_T: Tensor) -> Tensor:
        """Returns the weights (T,), 0 for absent tasks."""
        present_T = present_tasks(gramian_TT)
        if self.keeps_state and present_T.any():
            weights_T = torch.where(present_T, self.solve(gramian_TT, losses_T), 0)
        else:
            weights_T = super().weights(gramian_TT, losses_T)
        return weights_T * (int(present_T.sum()) if self.factor == 'tasks' else self.factor)

    def solve(self, gramian_SS: Tensor, losses_S: Tensor) -> Tensor:
        """Returns torchjd's weights (S,)."""
        return solve_with_torchjd(self.solver, gramian_SS, self.generator, self.normalize)

    def get_extra_state(self) -> Tensor:
        """The state of the random numbers, for ``state_dict()``."""
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Restores what :meth:`get_extra_state` returned."""
        self.generator.set_state(state.cpu())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Makes torchjd's buffers before they are loaded: it has none until the first step, and refuses its own."""
        from torchjd import Stateful

        if isinstance(self.solver, Stateful):
            self.solver.reset()
            saved = [value for key, value in state_dict.items() if key.startswith(f'{prefix}solver.') and value.dim()]
            if saved:
                _prime(self.solver, len(saved[0]))
        super()._load_from_state_dict(state_dict, prefix, *args)


def make_solver(weighting: str | type, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """An object of torchjd's Gramian weightings, by class name; arguments and errors as in :class:`TorchJD`."""
    aggregation = _import_torchjd()
    # Only this base tells those that read a Gramian; the public one does not.
    from torchjd.aggregation._weighting_bases import _GramianWeighting

    exported = {name: getattr(aggregation, name) for name in aggregation.__all__}
    known = {name: kind for name, kind in exported.items() if issubclass(kind, _GramianWeighting)}
    weighting = _plain_name(weighting)
    if weighting not in known:
        there = f'torchjd {version("torchjd")} has no Gramian weighting {weighting!r}; there are {", ".join(known)}'
        raise ValueError(f'TorchJD: {there}')
    solver: nn.Module = _build(f'TorchJD: {weighting}', known[weighting], arguments or {})
    return solver


def solve_with_torchjd(
    solver: nn.Module, gramian_SS: Tensor, generator: torch.Generator, normalize: bool = True
) -> Tensor:
    """The weights that one of torchjd's weightings gives.

    Args:
        solver: Result of :func:`make_solver`.
        gramian_SS: Gramian of tasks that have a gradient, (S, S), float64, on the CPU.
        generator: Source of torchjd's random numbers in place of torch's global state.
        normalize: Whether to divide by the largest diagonal entry.

    Returns:
        The weights (S,), float64.

    Raises:
        ValueError: If torchjd, or the solver that it calls, refuses the Gramian.
        RuntimeError: If the weights are not finite.
    """
    name, num_tasks = type(solver).__name__, len(gramian_SS)
    if normalize:
        gramian_SS = gramian_SS / gramian_SS.diagonal().max()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.set_rng_state(generator.get_state())
        try:
            weights_S: Tensor = solver.cpu()(gramian_SS)
        except Exception as error:  # solvers have errors of their own kinds
            raise ValueError(f'TorchJD: {name} of {num_tasks} tasks with a gradient: {error}') from error
        generator.set_state(torch.get_rng_state())
    if not torch.isfinite(weights_S).all():
        raise RuntimeError(f'TorchJD: {name} returned the weights {weights_S.tolist()}; its solver has failed')
    return weights_S.to(gramian_SS)


def _import_torchjd() -> ModuleType:
    try:
        import torchjd.aggregation
    except ImportError as error:
        raise ImportError(
            f"PCGrad and TorchJD need torchjd: pip install 'torchjd>=0.18,<0.19' (import torchjd.aggregation: {error})"
        ) from error
    return torchjd.aggregation


def _build(owner: str, kind: type, arguments: Mapping[str, Any]) -> Any:
    """An object of a class of torchjd's; ``owner`` begins the messages."""
    signature = inspect.signature(kind)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise ValueError(f'{owner} takes {signature.replace(return_annotation=signature.empty)}: {error}') from None
    values = {key: _argument(f'{owner}, {key}', value) for key, value in arguments.items()}
    try:
        return kind(**values)
    except ImportError as error:
        raise ImportError(f'{owner}: {error}') from error
    except (TypeError, ValueError) as error:
        raise ValueError(f'{owner}: {error}') from error


def _argument(owner: str, value: Any) -> Any:
    """A config's value as torchjd's classes take it."""
    if isinstance(value, Mapping) and 'type' in value:
        import torchjd.linalg

        name, rest = _plain_name(value['type']), {key: other for key, other in value.items() if key != 'type'}
        if name not in torchjd.linalg.__all__:
            raise ValueError(f'{owner}: torchjd.linalg has no {name!r}; there are {", ".join(torchjd.linalg.__all__)}')
        return _build(f'{owner}: {name}', getattr(torchjd.linalg, name), rest)
    return torch.tensor(value, dtype=torch.float64) if isinstance(value, (list, tuple)) else value


def _plain_name(kind: str | type) -> str:
    """The name of a class of torchjd's, which a config may give with its module."""
    return (kind if isinstance(kind, str) else kind.__name__).rpartition('.')[2]


def _prime(solver: nn.Module, num_tasks: int) -> None:
    """A first step, after which torchjd's buffers are there, of the size for so many tasks."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        solver(torch.eye(num_tasks, dtype=torch.float64))


def _keeps_state(solver: nn.Module) -> bool:
    """Whether the weighting keeps state, in buffers.

    Raises:
        ValueError: If it keeps state elsewhere, so that no checkpoint would hold it.
    """
    from torchjd import Stateful

    if not isinstance(solver, Stateful):
        return False
    if not any(module._buffers for module in solver.modules()):
        raise ValueError(
            f'TorchJD: {type(solver).__name__} keeps state that is not in its state_dict(); a run could not be resumed'
        )
    return True
