"""The one place where a multi-task method meets training."""

import json
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from mmrepmtl.engine.capture import SharedCapture
from mmrepmtl.engine.checks import DTYPES, check_names, check_settings, find_shared, unwrap
from mmrepmtl.engine.gradients import GradientAggregation
from mmrepmtl.engine.methods import build_method
from mmrepmtl.engine.objective import check_finite, mean_over_ranks, regularize, transform_losses, weigh
from mmrepmtl.engine.state import check_same_run, method_signature, without_learned
from mmrepmtl.engine.task_losses import TaskLosses, collect, resolve_prefixes
from mmrepmtl.methods.aggregation import Aggregator
from mmrepmtl.methods.regularizer import Regularizer, num_processes
from mmrepmtl.methods.weighting import Weighting
from mmrepmtl.registry import AGGREGATORS, OPTIM_WRAPPERS, REGULARIZERS, WEIGHTINGS


@dataclass
class _Step:
    """What the forward hooks leave for the backward of the same iteration."""

    views: list[Tensor]
    losses: TaskLosses
    objectives: list[Tensor]
    weighted: Tensor
    rest: Tensor | None


@OPTIM_WRAPPERS.register_module()
class MultiTaskOptimWrapper(OptimWrapper):
    """Optim wrapper in which a loss weighting, a gradient aggregator and regularisers of Z act on any mmengine model.

    Nothing in the model changes: within ``optim_context`` a hook on the shared module captures Z and a hook on the
        model
    turns its per-task losses into the objective

        sum_t w_t f(L_t) + sum of the regularisers' terms,        f = log or the identity.

    Both act inside ``forward``, where DistributedDataParallel keeps every gradient right. Losses are global (mean over
    ranks) in value wherever a method reads them; models whose losses are means over a varying number of elements per
    rank get the mean of the ranks' means, ours normalise globally. With accumulation every micro-batch uses its own
    values.

    Args:
        optimizer: The optimizer (mmengine builds it from the config).
        shared: Dotted name of the module whose output is the shared representation Z; whatever follows it is a head.
        tasks: {task: prefix of its loss keys}, a list of task names (prefix ``'TASK.'``), or None: the model's own
            ``tasks``.
        extra_losses: What to do with loss keys that no task claims: ``'error'`` or ``'add'`` (unweighted).
        loss_transform: ``'log'``: the objective is made of log losses, as on all benchmarks of the paper; None: of the
            losses.
        weighting: Config of the loss weighting.
        aggregator: Config of the gradient aggregator, or None for one ordinary backward.
        regularizers: Configs of the regularisers.
        precision: ``'fp32'``, ``'bf16'`` or ``'fp16'`` (autocast; fp16 with a gradient scaler).
        loss_scale: Arguments of ``torch.amp.GradScaler`` for fp16, for example ``dict(init_scale=1024.)``.
        weighting_lr: Learning rate of the weights that a method learns; None: that of the optimizer. They have no decay
            and are not part of gradient clipping.
        diagnostics_interval: Every how many iterations the regularisers' diagnostics go to the log.
        force_resume: Resume although the method or the number of processes differs from the checkpoint's.
        accumulative_counts: Micro-batches per optimizer step.
        clip_grad: As in mmengine.

    Raises:
        ValueError: For settings that contradict each other, an unknown ``shared``, unclaimed losses, a loss that is not
            positive under the log.
        RuntimeError: Where a method could not act: hooks that did not fire, a compiled whole model, ``static_graph``.
        FloatingPointError: For a non-finite loss, with the task's name (fp16: left to the scaler, which skips the
            step).
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        shared: str,
        tasks: Mapping[str, str] | Sequence[str] | None = None,
        extra_losses: Literal['error', 'add'] = 'error',
        loss_transform: Literal['log'] | None = None,
        weighting: dict | Weighting | None = None,
        aggregator: dict | Aggregator | None = None,
        regularizers: Sequence[dict | Regularizer] = (),
        precision: Literal['fp32', 'bf16', 'fp16'] = 'fp32',
        loss_scale: dict | None = None,
        weighting_lr: float | None = None,
        diagnostics_interval: int = 10,
        force_resume: bool = False,
        accumulative_counts: int = 1,
        clip_grad: dict | None = None,
    ) -> None:
        super().__init__(
            optimizer,
            accumulative_counts=accumulative_counts,
            clip_grad=dict(clip_grad) if clip_grad is not None else None,
        )
        check_settings(extra_losses, loss_transform, precision, tasks)
        self.signature = method_signature(
            weighting or dict(type='EqualWeighting'),
            aggregator,
            regularizers,
            shared=shared,
            tasks=tasks,
            extra_losses=extra_losses,
            loss_transform=loss_transform,
            precision=precision,
            weighting_lr=weighting_lr,
            accumulative_counts=accumulative_counts,
            clip_grad=clip_grad,
        )
        self.weighting: Weighting = build_method(weighting or dict(type='EqualWeighting'), WEIGHTINGS)
        if loss_transform == 'log' and self.weighting.loss_transform == 'own':
            raise ValueError(
                f'MultiTaskOptimWrapper: {type(self.weighting).__name__} handles the scale of the losses itself; '
                "loss_transform='log' would be a second transform, set loss_transform=None"
            )
        aggregator = build_method(aggregator, AGGREGATORS)
        self.regularizers: list[Regularizer] = [build_method(cfg, REGULARIZERS) for cfg in regularizers]
        check_names(self.regularizers)
        self.shared, self.tasks = shared, tasks
        self.extra_losses, self.loss_transform, self.precision = extra_losses, loss_transform, precision
        self.diagnostics_interval, self.force_resume = diagnostics_interval, force_resume
        self.loss_scale = dict(loss_scale or {})
        self._aggregation: GradientAggregation | None = None
        self.aggregator = aggregator
        self._model_parameters = [p for group in optimizer.param_groups for p in group['params']]
        learned = list(self.weighting.parameters()) + (list(aggregator.parameters()) if aggregator else [])
        self._has_learned = bool(learned)
        if learned:
            self._add_group(learned, weighting_lr)
        self.loss_scaler: torch.amp.GradScaler | None = None
        self._scaler_state: dict | None = None
        self._prefixes: dict[str, str] | None = None
        self._prepared: nn.Module | None = None
        self._group = None
        self._pending: _Step | None = None

    def _add_group(self, parameters: list[nn.Parameter], lr: float | None) -> None:
        self.optimizer.add_param_group(
            dict(params=parameters, lr=self.optimizer.defaults['lr'] if lr is None else lr, weight_decay=0.0)
        )
        # mmengine reads the base learning rate from here as soon as there are several groups.
        if self.base_param_settings is None:
            self.base_param_settings = dict(params=torch.tensor([0.0]), **self.optimizer.defaults)

    # ---- before the forward ----

    def initialize_count_status(self, model: nn.Module, init_counts: int, max_counts: int) -> None:
        """Checks the model, before mmengine may compile it, and says in the log what will be optimised."""
        self._prepare(model)
        super().initialize_count_status(model, init_counts, max_counts)
        print_log(f'MultiTaskOptimWrapper: {self.describe()}', logger='current')

    def describe(self) -> str:
        """The objective in one line, with the definitions that the literature has two of."""
        inner = 'log L_t' if self.loss_transform == 'log' else 'L_t'
        parts = [
            f'{type(self.weighting).__name__} of {inner} over tasks {list(self._prefixes or {})}',
            f'Z = output of {self.shared!r}',
            f'precision {self.precision}',
            *(str(r) for r in self.regularizers),
        ]
        if self.aggregator is not None:
            parts.append(f'{type(self.aggregator).__name__} at {self.aggregator.level} level')
        return '; '.join(parts)

    def _prepare(self, model: nn.Module) -> nn.Module:
        """Checks and settings that depend on the model, once; returns the model inside DistributedDataParallel."""
        inner = unwrap(model)
        if self._prepared is model:
            return inner
        find_shared(inner, self.shared)
        prefixes = resolve_prefixes(self.tasks, inner)
        if self._prefixes is not None and list(prefixes) != list(self._prefixes):
            raise RuntimeError(
                f'MultiTaskOptimWrapper: the checkpoint was made for the tasks {list(self._prefixes)}, the model '
                f'has {list(prefixes)}'
            )
        self._setup_methods(prefixes)
        device = next(inner.parameters()).device
        if num_processes() > 1 and self._group is None:
            # A group of its own: DDP's collectives during backward can never be mixed up with ours.
            self._group = dist.new_group()
        for regularizer in self.regularizers:
            regularizer.process_group = self._group
        if self.aggregator is not None:
            self._aggregation = GradientAggregation(self.aggregator, self._group, self.precision == 'fp16')
        if self.precision == 'fp16' and self.loss_scaler is None:
            self.loss_scaler = torch.amp.GradScaler(device.type, **self.loss_scale)
            if self._scaler_state is not None:
                self.loss_scaler.load_state_dict(self._scaler_state)
        self._prepared = model
        return inner

    def _setup_methods(self, prefixes: Mapping[str, str]) -> None:
        self._prefixes = dict(prefixes)
        self.weighting.setup(len(prefixes))
        if self.aggregator is not None:
            self.aggregator.setup(len(prefixes))
        # Before a state is loaded: the optimizer puts its own state where the parameters are.
        for module in (self.weighting, self.aggregator, *self.regularizers):
            if module is not None:
                module.to(self._model_parameters[0].device)

    @contextmanager
    def optim_context(self, model: nn.Module):
        """Places the hooks for one forward pass; ``no_sync`` where DDP is not to reduce the gradients."""
        inner = self._prepare(model)
        device = next(inner.parameters()).device.type
        self._pending, capture = None, SharedCapture(self.shared)
        hooks = [
            find_shared(inner, self.shared).register_forward_hook(capture),
            inner.register_forward_hook(lambda *call: self._after_forward(capture, *call), with_kwargs=True),
        ]
        unsynced = hasattr(model, 'no_sync') and (self._aggregation is not None or not self.should_sync())
        dtype = DTYPES[self.precision]
        try:
            with model.no_sync() if unsynced else nullcontext():
                with torch.autocast(device, dtype) if dtype is not None else nullcontext():
                    yield
        finally:
            for hook in hooks:
                hook.remove()
        if not capture.fired:
            raise RuntimeError(
                f'MultiTaskOptimWrapper: the hook on the shared module {self.shared!r} did not fire; the model '
                'must call that module itself (module(x), not module.forward(x))'
            )
        if self._pending is None:
            raise RuntimeError(
                f"MultiTaskOptimWrapper: the hook on {type(inner).__name__} did not see forward(mode='loss'); "
                'run the model through train_step of mmengine'
            )

    # ---- inside the forward ----

    def _after_forward(self, capture: SharedCapture, model: nn.Module, args, kwargs, outputs):
        """Turns the loss dict of the model into the objective and what the log shows."""
        if kwargs.get('mode', args[-1] if args else None) != 'loss':
            return None
        if not capture.fired:
            return None  # optim_context names the module once the hooks are gone
        capture.check_unmodified()
        device = capture.views[0].device.type
        with torch.autocast(device, enabled=False):
            losses = collect(outputs, self._prefixes, self.extra_losses, self._group)
            if self.precision != 'fp16':
                check_finite(losses, self._inner_count)
            transformed = transform_losses(losses, self.loss_transform, self._inner_count)
            objective, weights_T = weigh(self.weighting, transformed, losses.labelled_T)
            for regularizer in self.regularizers:
                regularizer.backward_scale = self.scale_loss(1.0)
                regularizer.measure_gradient = self._log_due() and self._aggregation is None
            penalty, report = regularize(
                self.regularizers,
                losses,
                capture.levels(self._prefixes),
                weights_T,
                self.loss_transform == 'log',
                self._log_due(),
                self._group,
                iteration=self._inner_count if self.precision != 'fp16' else None,
                scale=self._scale(),
                advance=self.should_sync(),
            )
        rest = [term for term in (penalty, losses.extra) if term is not None]
        weighted = [w * value for w, value in zip(weights_T, transformed, strict=True)]
        self._pending = _Step(capture.views, losses, weighted, objective, sum(rest) if rest else None)
        log = losses.log | {f'weight/{task}': w for task, w in zip(losses.losses, weights_T, strict=True)} | report
        return {'loss': objective + sum(rest) if rest else objective, **log}

    def _scale(self) -> float:
        return 1.0 if self.loss_scaler is None else self.loss_scaler.get_scale()

    # ---- backward and step ----

    def backward(self, loss: Tensor, **kwargs) -> None:
        """Backward of the objective, or per task and combined where there is an aggregator."""
        if self._pending is None:
            raise RuntimeError(
                'MultiTaskOptimWrapper: backward without a forward inside optim_context; no method acted'
            )
        step, self._pending = self._pending, None
        last, factor = self.should_sync(), self.scale_loss(1.0)
        if self._aggregation is None:
            (loss if self.loss_scaler is None else self.loss_scaler.scale(loss)).backward(**kwargs)
        else:
            if self.loss_scaler is not None:
                self.loss_scaler.scale(loss.detach())  # creates the scaler's state, as its use in backward would
            trainable = [p for p in self._model_parameters if p.requires_grad]
            learned = list(self.weighting.parameters())
            if learned:
                torch.autograd.backward(step.weighted * (factor * self._scale()), inputs=learned, retain_graph=True)
            self._aggregation.backward(
                list(step.losses.losses),
                step.objectives,
                step.rest,
                step.views,
                trainable,
                step.losses.losses_T,
                factor,
                self._scale(),
                last,
            )
        self._report_gradients(step)
        self._inner_count += 1

    def _report_gradients(self, step: _Step) -> None:
        """What is known only after the backward goes to the log through the message hub."""
        if not self._log_due():
            return
        if self._aggregation is not None and self._aggregation.weights_T is not None:
            for task, weight in zip(step.losses.losses, self._aggregation.weights_T.tolist(), strict=True):
                self.message_hub.update_scalar(f'train/aggregator/{task}', weight)
        if not self.regularizers:
            return
        if self._aggregation is not None:
            found = {'penalty': self._aggregation.penalty_squares}
        else:
            found = {r.name: r.gradient_squares for r in self.regularizers}
        # Which entries there are must not depend on what this rank found: every rank takes part in the reduction.
        squares = {}
        for name, pair in found.items():
            squares[f'{name}/penalty'], squares[f'{name}/tasks'] = (0.0, 0.0) if pair is None else pair.tolist()
        squares = mean_over_ranks(squares, step.losses.losses_T, self._group)
        for name in found:
            if squares[f'{name}/tasks'] > 0:
                ratio = (squares[f'{name}/penalty'] / squares[f'{name}/tasks']).sqrt()
                self.message_hub.update_scalar(f'train/{name}/grad_ratio', float(ratio))

    def _log_due(self) -> bool:
        return self.diagnostics_interval > 0 and self._inner_count % self.diagnostics_interval == 0

    def step(self, **kwargs) -> None:
        """Unscales, clips and steps."""
        if self.loss_scaler is None:
            super().step(**kwargs)
            return
        if self.clip_grad_kwargs:
            self.loss_scaler.unscale_(self.optimizer)
            self._clip_grad()
        self.loss_scaler.step(self.optimizer, **kwargs)
        self.loss_scaler.update()

    def _clip_grad(self) -> None:
        """Clips the model's gradients; learned weights of a method are no part of the norm."""
        params = [p for p in self._model_parameters if p.requires_grad and p.grad is not None]
        if params:
            norm = self.clip_func(params, **self.clip_grad_kwargs)
            if norm is not None:
                self.message_hub.update_scalar(f'train/{self.grad_name}', float(norm))

    # ---- state ----

    def state_dict(self) -> dict:
        """The optimizer's state, and under ``'multi_task'`` that of the method."""
        state = super().state_dict()
        if self.loss_scaler is not None:
            state['loss_scaler'] = self.loss_scaler.state_dict()
        state['multi_task'] = dict(
            signature=json.dumps(self.signature, sort_keys=True),
            world_size=num_processes(),
            tasks=list(self._prefixes or {}),
            weighting=self.weighting.state_dict(),
            aggregator=self.aggregator.state_dict() if self.aggregator is not None else {},
            regularizers=[regularizer.state_dict() for regularizer in self.regularizers],
        )
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        """Restores :meth:`state_dict`.

        Raises:
            RuntimeError: If the state is of another method or number of processes, unless ``force_resume``.
        """
        state_dict = dict(state_dict)
        scaler, own = state_dict.pop('loss_scaler', None), state_dict.pop('multi_task', None)
        same = check_same_run(own, self.signature, self.force_resume)
        if own is not None and own['tasks'] and self._prefixes is None:
            self._setup_methods({task: '' for task in own['tasks']})
        if same:
            self.weighting.load_state_dict(own['weighting'])
            if self.aggregator is not None:
                self.aggregator.load_state_dict(own['aggregator'])
            for regularizer, state in zip(self.regularizers, own['regularizers'], strict=True):
                regularizer.load_state_dict(state)
        self._scaler_state = scaler
        if self.loss_scaler is not None and scaler is not None:
            self.loss_scaler.load_state_dict(scaler)
        super().load_state_dict(
            state_dict
            if same
            else without_learned(state_dict, self.optimizer, len(self._model_parameters), self._has_learned)
        )
