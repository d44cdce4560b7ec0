"""Several optimizers, for example one for the encoder and one for the heads, that make one step together."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper, OptimWrapperDict
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIMIZERS
from torch import Tensor, nn

from mmrepmtl.engine.aliases import State
from mmrepmtl.engine.gradients.writing import clip_gradients
from mmrepmtl.engine.method_state import without_learned
from mmrepmtl.engine.optim_wrapper import MultiTaskOptimWrapper
from mmrepmtl.registry import OPTIM_WRAPPERS

_ENTRY = ('optimizer', 'modules', 'paramwise_cfg', 'clip_grad')


class JointOptimizer:
    """Several optimizers that look like one to a step and to a gradient scaler.

    Args:
        optimizers: {name: optimizer}.

    Raises:
        ValueError: If a parameter is in two of them.
    """

    def __init__(self, optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
        self.optimizers = dict(optimizers)
        owner: dict[int, str] = {}
        for name, optimizer in self.optimizers.items():
            for p in (p for group in optimizer.param_groups for p in group['params']):
                if owner.setdefault(id(p), name) != name:
                    raise ValueError(
                        f'MultiTaskOptimWrapper: a parameter of shape {tuple(p.shape)} is in two optimizers, '
                        f'{owner[id(p)]!r} and {name!r}; give it to one of them'
                    )

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of all optimizers, in order."""
        return [group for optimizer in self.optimizers.values() for group in optimizer.param_groups]

    @property
    def defaults(self) -> dict[str, Any]:
        """The defaults of the first optimizer, which mmengine reads."""
        return next(iter(self.optimizers.values())).defaults

    @property
    def state(self) -> dict[Tensor, Any]:
        """{parameter: its state}, of all optimizers."""
        return {p: value for optimizer in self.optimizers.values() for p, value in optimizer.state.items()}

    def step(self, **kwargs: Any) -> None:
        """Makes a step of each optimizer."""
        for optimizer in self.optimizers.values():
            optimizer.step(**kwargs)

    def zero_grad(self, **kwargs: Any) -> None:
        """Drops the gradients of all optimizers."""
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(**kwargs)

    def __repr__(self) -> str:
        return '\n'.join(f'{name}: {optimizer!r}' for name, optimizer in self.optimizers.items())


class _Member(OptimWrapper):
    """One of the optimizers. Schedulers act on it and the log shows its learning rate, but it makes no step alone."""

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(
            'MultiTaskOptimWrapper: the optimizers of one MultiTaskOptimWrapperDict make their step together; call '
            'optim_context, update_params, backward and step of the dict, not of its entries'
        )

    update_params = backward = step = _refuse

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Raises the same error as the other methods that belong to a step."""
        self._refuse()
        yield


@OPTIM_WRAPPERS.register_module()
class MultiTaskOptimWrapperDict(MultiTaskOptimWrapper, OptimWrapperDict):
    """A :class:`MultiTaskOptimWrapper` with several optimizers.

    It acts as one optim wrapper: one forward pass, one objective, one decision whether a step is made, and then a step
    of each optimizer. To mmengine it is an ``OptimWrapperDict`` too: ``param_scheduler`` may be one list for all
    optimizers or a dict with a list for each, the log shows ``NAME.lr``, ``scale_lr`` and resume act on every one.
    ``SeparateOptimizers`` builds it from a config.

    Args:
        optimizers: {name: optimizer}, or {name: plain mmengine ``OptimWrapper``} for clipping of its own.
        weighting_optimizer: Name of the optimizer that trains the weights that a method learns; None: the first.
        **settings: Those of :class:`MultiTaskOptimWrapper`; its ``clip_grad`` clips the gradients of all parameters
            together, after those of the entries.

    Raises:
        ValueError: If there is no optimizer, a parameter is in two, a name is reserved, or an entry is no optimizer.
    """

    def __init__(
        self,
        optimizers: Mapping[str, torch.optim.Optimizer | OptimWrapper],
        weighting_optimizer: str | None = None,
        **settings: Any,
    ) -> None:
        if not optimizers:
            raise ValueError('MultiTaskOptimWrapper: `optimizers` is empty; it needs at least one entry')
        for name in ('multi_task', 'loss_scaler'):
            if name in optimizers:
                raise ValueError(f'MultiTaskOptimWrapper: an optimizer cannot be called {name!r}; rename it')
        self.optim_wrappers = {name: _as_member(name, value) for name, value in optimizers.items()}
        self.weighting_optimizer = next(iter(optimizers)) if weighting_optimizer is None else weighting_optimizer
        if self.weighting_optimizer not in self.optim_wrappers:
            raise ValueError(
                f'MultiTaskOptimWrapper: weighting_optimizer={weighting_optimizer!r} is none of the optimizers '
                f'{list(optimizers)}'
            )
        self._counts = {
            name: sum(len(group['params']) for group in member.optimizer.param_groups)
            for name, member in self.optim_wrappers.items()
        }
        joint = JointOptimizer({name: member.optimizer for name, member in self.optim_wrappers.items()})
        # A JointOptimizer has all that mmengine and torch's scaler call of an optimizer, and it is none.
        MultiTaskOptimWrapper.__init__(self, joint, **settings)  # type: ignore[arg-type]
        clips = any(member.clip_grad_kwargs for member in self.optim_wrappers.values())
        if clips and self.aggregator is not None and self.aggregator.returns == 'update':
            raise ValueError(
                f'MultiTaskOptimWrapper: {type(self.aggregator).__name__} is an optimizer; there is no combined '
                'gradient that clip_grad could clip'
            )

    # OptimWrapperDict refuses the first and drops the arguments of the second.
    update_params = OptimWrapper.update_params
    zero_grad = OptimWrapper.zero_grad

    def _clip_grad(self) -> None:
        model = {id(p) for p in self._model_parameters}
        for name, member in self.optim_wrappers.items():
            if member.clip_grad_kwargs:
                own = [p for group in member.optimizer.param_groups for p in group['params'] if id(p) in model]
                clip_gradients(member, own, prefix=f'{name}.')
        super()._clip_grad()

    def _optimizer_settings(self) -> list[str]:
        return list(self.optim_wrappers)

    def _learning_wrapper(self) -> OptimWrapper:
        return self.optim_wrappers[self.weighting_optimizer]

    def _optimizer_state(self) -> State:
        state: State = OptimWrapperDict.state_dict(self)
        return state

    def load_optimizer(self, state: State, same: bool) -> None:
        """Restores every optimizer; ``same`` says whether the method, and so its learned weights, are the same."""
        if set(state) != set(self.optim_wrappers):
            raise RuntimeError(
                f'MultiTaskOptimWrapper: the checkpoint holds the state of the optimizers {sorted(map(str, state))}, '
                f'this run has {sorted(self.optim_wrappers)}; start anew with load_from'
            )
        for name, member in self.optim_wrappers.items():
            own = state[name]
            if not same:
                learns = self.has_learned and name == self.weighting_optimizer
                own = without_learned(own, member.optimizer, self._counts[name], learns)
            member.load_state_dict(own)


def _as_member(name: str, value: torch.optim.Optimizer | OptimWrapper) -> _Member:
    if isinstance(value, _Member):
        return value
    if isinstance(value, torch.optim.Optimizer):
        return _Member(value)
    if type(value) is OptimWrapper:
        if value._accumulative_counts != 1:
            raise ValueError(
                f'MultiTaskOptimWrapper: the optim wrapper {name!r} has accumulative_counts='
                f'{value._accumulative_counts}; all optimizers step together, so set it for the whole'
            )
        member = _Member(value.optimizer)
        member.clip_grad_kwargs = value.clip_grad_kwargs
        if value.clip_grad_kwargs:
            member.clip_func, member.grad_name = value.clip_func, value.grad_name
        return member
    raise ValueError(
        f'MultiTaskOptimWrapper: the entry {name!r} of `optimizers` must be an optimizer or a plain OptimWrapper, got '
        f'{type(value).__name__}'
    )


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class SeparateOptimizers:
    """Builds a :class:`MultiTaskOptimWrapperDict` from a config with an entry for each optimizer::

        optim_wrapper = dict(
            type='MultiTaskOptimWrapper',
            constructor='SeparateOptimizers',
            optimizers=dict(
                encoder=dict(optimizer=dict(type='AdamW', lr=1e-4), clip_grad=dict(max_norm=1.0)),
                heads=dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9)),
            ),
            shared='encoder',
            ...
        )

    An entry has ``optimizer``, and may have ``modules``, ``paramwise_cfg`` and ``clip_grad``. The last two are as in
    mmengine. ``modules`` are the dotted names of the modules or parameters that it trains (default: the module of the
    entry's name). If names overlap (``'encoder'`` and ``'encoder.norm'``), the longer one counts.

    Args:
        optim_wrapper_cfg: The config without its constructor.
        paramwise_cfg: Refused: each entry has its own.

    Raises:
        ValueError: For an entry of another form. When called: for a name that the model does not have, and for a
            trainable parameter that no optimizer or more than one has.
    """

    def __init__(self, optim_wrapper_cfg: Mapping[str, Any], paramwise_cfg: Mapping[str, Any] | None = None) -> None:
        self.settings = dict(optim_wrapper_cfg)
        self.entries = self.settings.pop('optimizers', None)
        if not isinstance(self.entries, Mapping) or not self.entries:
            raise ValueError(
                'SeparateOptimizers: optim_wrapper needs optimizers=dict(NAME=dict(optimizer=dict(...)), ...), got '
                f'{self.entries!r}'
            )
        if self.settings.pop('optimizer', None) is not None:
            raise ValueError('SeparateOptimizers: give `optimizers` or `optimizer`, not both')
        if paramwise_cfg:
            raise ValueError('SeparateOptimizers: give each entry of `optimizers` a paramwise_cfg of its own')
        for name, entry in self.entries.items():
            unknown = sorted(set(entry) - set(_ENTRY)) if isinstance(entry, Mapping) else None
            if unknown is None or unknown or not isinstance(entry.get('optimizer'), Mapping):
                raise ValueError(
                    f'SeparateOptimizers: the entry {name!r} must be a dict with `optimizer` (a dict) and, if needed, '
                    f'{", ".join(_ENTRY[1:])}, got {entry!r}'
                )

    def __call__(self, model: nn.Module) -> MultiTaskOptimWrapperDict:
        """Builds the optimizers and the wrapper for a model, which may be inside DistributedDataParallel."""
        model = getattr(model, 'module', model)
        modules = {name: _names(name, entry) for name, entry in self.entries.items()}
        owned = _owners(model, modules)
        members = {}
        for name, entry in self.entries.items():
            cfg, paramwise = dict(entry['optimizer']), entry.get('paramwise_cfg')
            own = {id(p) for p, owner in owned.values() if owner == name}
            if not own:
                raise ValueError(f'SeparateOptimizers: the optimizer {name!r} has no parameter ({modules[name]})')
            cfg['params'] = _groups(model, modules[name], own, cfg, paramwise)
            members[name] = OptimWrapper(OPTIMIZERS.build(cfg), clip_grad=_copied(entry.get('clip_grad')))
        settings = dict(self.settings)
        kind = settings.pop('type', 'MultiTaskOptimWrapper')
        kind = kind if isinstance(kind, str) else kind.__name__
        if kind not in ('MultiTaskOptimWrapper', 'MultiTaskOptimWrapperDict'):
            raise ValueError(f'SeparateOptimizers: builds a MultiTaskOptimWrapper, not optim_wrapper.type={kind!r}')
        return MultiTaskOptimWrapperDict(members, **settings)


def _copied(clip_grad: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if clip_grad is None else dict(clip_grad)


def _names(name: str, entry: Mapping[str, Any]) -> list[str]:
    modules = entry.get('modules')
    modules = [name] if modules is None else modules
    return [modules] if isinstance(modules, str) else list(modules)


def _owners(model: nn.Module, modules: Mapping[str, Sequence[str]]) -> dict[str, tuple[nn.Parameter, str]]:
    """Finds the optimizer of each parameter: {parameter's name: (parameter, name of its optimizer)}.

    Raises:
        ValueError: For a name that the model does not have, and for trainable parameters of no or of two optimizers.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    known = {*named, *(name for name, _ in model.named_modules())}
    for entry, names in modules.items():
        for name in names:
            if name not in known:
                children = [child for child, _ in model.named_children()]
                raise ValueError(
                    f'SeparateOptimizers: the optimizer {entry!r} is for {name!r}, which the model does not have; it '
                    f'has {children}. Say what it trains by modules=[...]'
                )
    found: dict[str, tuple[nn.Parameter, str]] = {}
    owner_of: dict[int, tuple[str, str]] = {}
    missing: list[str] = []
    for name, p in named.items():
        pairs = ((module, entry) for entry, names in modules.items() for module in names)
        fitting = [(len(module), entry) for module, entry in pairs if _within(name, module)]
        longest = max(fitting, default=(0, ''))[0]
        entries = sorted({entry for length, entry in fitting if length == longest})
        if not entries:
            missing += [name] * p.requires_grad
            continue
        other, before = owner_of.setdefault(id(p), (name, entries[0]))
        if len(entries) > 1 or before != entries[0]:
            raise ValueError(
                f'SeparateOptimizers: the parameter {name!r}'
                + (f' (tied to {other!r})' if other != name else '')
                + f' is in two optimizers, {" and ".join(map(repr, sorted({before, *entries})))}; give it to one by '
                'modules=[...]'
            )
        found[name] = p, entries[0]
    missing = [name for name in missing if id(named[name]) not in owner_of]
    if missing:
        shown = ', '.join(map(repr, missing[:5])) + (', ...' if len(missing) > 5 else '')
        raise ValueError(
            f'SeparateOptimizers: {len(missing)} trainable parameters are in no optimizer and would never learn: '
            f'{shown}; add their module to the `modules` of an entry, or freeze them'
        )
    return found


def _within(name: str, module: str) -> bool:
    return not module or name == module or name.startswith(module + '.')


def _groups(
    model: nn.Module, names: Sequence[str], own: set[int], cfg: dict[str, Any], paramwise: dict[str, Any] | None
) -> list[nn.Parameter] | list[dict[str, Any]]:
    """Returns the parameters of one optimizer, or its parameter groups if it has a paramwise_cfg."""
    if not paramwise:
        return [p for p in model.parameters() if id(p) in own]
    constructor = DefaultOptimWrapperConstructor(dict(optimizer=cfg), paramwise)
    groups: list[dict[str, Any]] = []
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name in names:
        if name in parameters:
            groups.append(dict(params=[parameters[name]]))
        else:
            constructor.add_params(groups, model.get_submodule(name), prefix=name)
    kept: list[dict[str, Any]] = []
    seen: set[int] = set()
    for group in groups:  # each holds one parameter; names may overlap, also with those of another optimizer
        if id(group['params'][0]) in own - seen:
            seen.add(id(group['params'][0]))
            kept.append(group)
    return kept
