"""The one place where a multi-task method meets training."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from mmrepmtl.engine import checks
from mmrepmtl.engine.aliases import ProcessGroup, State
from mmrepmtl.engine.buffers import BufferKeeper
from mmrepmtl.engine.capture import SharedCapture
from mmrepmtl.engine.epochs import EpochWatch
from mmrepmtl.engine.gradients import Level, level_of
from mmrepmtl.engine.gradients.writing import clip_gradients, keep_layouts
from mmrepmtl.engine.graph import check_gradients
from mmrepmtl.engine.method_state import (
    add_learned_group,
    load_wrapper_state,
    method_signature,
    method_state,
    without_learned,
)
from mmrepmtl.engine.methods import build_method, setup_methods
from mmrepmtl.engine.nonfinite import NonFinite, NonFinitePolicy
from mmrepmtl.engine.objective import Step, objective
from mmrepmtl.engine.outside import OutsideParameters
from mmrepmtl.engine.precision import Precision
from mmrepmtl.engine.report import describe, report_gradients
from mmrepmtl.engine.second_look import SecondLook
from mmrepmtl.engine.task_losses import TaskLosses, ZeroLosses, agreed_losses, collect, resolve_prefixes
from mmrepmtl.methods.aggregation import Aggregator
from mmrepmtl.methods.collectives import own_group
from mmrepmtl.methods.regularizer import Regularizer, RegularizerContext
from mmrepmtl.methods.weighting import Weighting
from mmrepmtl.registry import AGGREGATORS, OPTIM_WRAPPERS, REGULARIZERS, WEIGHTINGS


@OPTIM_WRAPPERS.register_module()
class MultiTaskOptimWrapper(OptimWrapper):
    """Optim wrapper in which a loss weighting, a gradient aggregator and regularisers of Z act on any mmengine model.

    The model stays as it is. Within ``optim_context`` a hook on the shared module captures Z, and a hook on the model
    turns its per-task losses into the objective

        sum_t w_t f(L_t) + sum of the regularisers' terms,        f = log or the identity.

    Both act inside ``forward``, so that DistributedDataParallel sees the objective. Methods read losses that are global
    (mean over ranks) in value; docs/engine.md says how. With accumulation every micro-batch uses its own values.

    Args:
        optimizer: The optimizer (mmengine builds it from the config).
        shared: Dotted name of the module whose output is the shared representation Z; all that follows it is a head.
        tasks: {task: prefix of its loss keys}, a list of task names (prefix ``'TASK.'``), or None: the model's own
            ``tasks``.
        extra_losses: Treatment of loss keys that no task claims: ``'error'`` or ``'add'`` (unweighted).
        loss_transform: ``'log'`` (as on all benchmarks of the paper) or None: f in the objective.
        weighting: Config of the loss weighting.
        aggregator: Config of the gradient aggregator, or None for one ordinary backward.
        regularizers: Configs of the regularisers.
        precision: ``'fp32'``, ``'bf16'`` or ``'fp16'`` (autocast; fp16 with a gradient scaler).
        loss_scale: Arguments of ``torch.amp.GradScaler`` for fp16, for example ``dict(init_scale=1024.)``.
        weighting_lr: Learning rate of the weights that a method learns; None: that of the optimizer. They have no decay
            and are not part of gradient clipping.
        diagnostics_interval: Iterations between two logs of the regularisers' diagnostics.
        on_nonfinite: Treatment of a loss or gradient that is not finite: ``'raise'``, or ``'skip'``: make no step and
            count it. With fp16 the gradient scaler handles overflows: it skips the step and lowers its scale.
        max_skipped: Number of skipped steps in a row that stops training in any case.
        zero_loss: Meaning of a loss of exactly 0 (no valid pixel in the global batch) if losses must be positive: under
            the log, and for methods that take logarithms or scales of losses. ``'unlabelled'``: the task has no label
            in that batch, which the log says once; ``'error'``: an error.
        force_resume: Resume although the method or the number of processes differs from the checkpoint's.
        accumulative_counts: Micro-batches per optimizer step.
        clip_grad: As in mmengine.

    Attributes:
        level: Computes and combines the gradients once the model is known; None without an aggregator.
        prefixes: {task: prefix of its loss keys}; empty until a model or a checkpoint is known.
        prepared: The model that the settings were checked for, perhaps inside DistributedDataParallel, or None.
        policy, buffers, epochs, second_look: Parts that have state in an unfinished window or epoch.

    Raises:
        ValueError: For settings that contradict each other, an unknown ``shared``, unclaimed losses, a loss that is not
            positive under the log.
        RuntimeError: If a method could not act: a hook did not fire, the whole model is compiled, ``static_graph``.
        FloatingPointError: For a loss or gradient that is not finite, with the task's name and the iteration.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        shared: str,
        tasks: Mapping[str, str] | Sequence[str] | None = None,
        extra_losses: Literal['error', 'add'] = 'error',
        loss_transform: Literal['log'] | None = None,
        weighting: dict[str, Any] | Weighting | None = None,
        aggregator: dict[str, Any] | Aggregator | None = None,
        regularizers: Sequence[dict[str, Any] | Regularizer] = (),
        precision: Literal['fp32', 'bf16', 'fp16'] = 'fp32',
        loss_scale: dict[str, Any] | None = None,
        weighting_lr: float | None = None,
        diagnostics_interval: int = 10,
        on_nonfinite: Literal['raise', 'skip'] = 'raise',
        max_skipped: int = 100,
        zero_loss: Literal['unlabelled', 'error'] = 'unlabelled',
        force_resume: bool = False,
        accumulative_counts: int = 1,
        clip_grad: dict[str, Any] | None = None,
    ) -> None:
        clip_grad = None if clip_grad is None else dict(clip_grad)
        OptimWrapper.__init__(self, optimizer, accumulative_counts=accumulative_counts, clip_grad=clip_grad)
        checks.check_settings(extra_losses, loss_transform, precision, tasks, zero_loss)
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
            zero_loss=zero_loss,
            optimizers=self._optimizer_settings(),
        )
        self.weighting: Weighting = build_method(weighting or dict(type='EqualWeighting'), WEIGHTINGS)
        self.aggregator: Aggregator | None = build_method(aggregator, AGGREGATORS)
        checks.check_methods(self.weighting, self.aggregator, loss_transform, accumulative_counts, clip_grad)
        self.regularizers: list[Regularizer] = [build_method(cfg, REGULARIZERS) for cfg in regularizers]
        checks.check_regularizers(self.regularizers)
        self.shared, self.tasks = shared, tasks
        self.extra_losses, self.loss_transform = extra_losses, loss_transform
        self.diagnostics_interval, self.force_resume = diagnostics_interval, force_resume
        self._zeros = ZeroLosses(zero_loss, (self.weighting, self.aggregator), self.regularizers, loss_transform)
        self.precision = Precision(precision, loss_scale)
        self.level: Level | None = None
        self._model_parameters = [p for group in optimizer.param_groups for p in group['params']]
        learned = self.weighting.learned() + (self.aggregator.learned() if self.aggregator else [])
        self.has_learned = bool(learned)
        if learned:
            add_learned_group(self._learning_wrapper(), learned, weighting_lr)
        self.prefixes: dict[str, str] = {}
        self.prepared: nn.Module | None = None
        self.process_group: ProcessGroup = None
        self._agreed, self._outside = agreed_losses(), OutsideParameters()
        self._own_calls: list[str] = []
        self._objectives: Sequence[Tensor] = ()  # those of the last micro-batch of a window
        self._pending: Step | None = None
        self.policy, self.buffers = NonFinitePolicy(on_nonfinite, precision == 'fp16', max_skipped), BufferKeeper()
        self.epochs = EpochWatch(self.weighting, self.message_hub)
        self.second_look = SecondLook() if self.weighting.second_look else None

    # ---- before the forward ----

    def initialize_count_status(self, model: nn.Module, init_counts: int, max_counts: int) -> None:
        """Checks the model, before mmengine may compile it, and logs the objective.

        Raises:
            ValueError: If the optimizer lacks a trainable parameter of the model.
        """
        self._prepare(model)
        self._outside.are_untrained = True  # the runner calls this if it has a single optim wrapper
        self._trainable()
        OptimWrapper.initialize_count_status(self, model, init_counts, max_counts)
        print_log(f'MultiTaskOptimWrapper: {describe(self)}', logger='current')

    def _prepare(self, model: nn.Module) -> nn.Module:
        """Checks the model and makes what depends on it, once; returns the model inside DistributedDataParallel."""
        inner = checks.unwrap(model)
        if self.prepared is model:
            return inner
        checks.find_shared(inner, self.shared)
        prefixes = resolve_prefixes(self.tasks, inner)
        if self.prefixes and list(prefixes) != list(self.prefixes):
            raise RuntimeError(
                f'MultiTaskOptimWrapper: the checkpoint was made for the tasks {list(self.prefixes)}, the model '
                f'has {list(prefixes)}'
            )
        self.setup_methods(prefixes)
        self._outside.find(inner, self._model_parameters)
        self._own_calls = checks.check_own_samples(inner, list(prefixes), self.aggregator)
        if self.process_group is None:
            # A new group: our collectives cannot be mixed up with those of DistributedDataParallel in the backward.
            self.process_group = self._agreed.group = own_group()
        if self.aggregator is not None:
            self.level = level_of(self.aggregator, self.process_group)
        self.precision.prepare(next(inner.parameters()).device.type)
        self.prepared = model
        return inner

    def setup_methods(self, prefixes: Mapping[str, str]) -> None:
        """Tells the methods their tasks, {task: prefix of its loss keys}, and moves them to the model's device."""
        self.prefixes = dict(prefixes)
        # Before a state is loaded: the optimizer puts its state on the device of the parameters.
        setup_methods(prefixes, self._model_parameters[0].device, self.weighting, self.aggregator, self.regularizers)

    def _trainable(self) -> list[nn.Parameter]:
        """The trainable parameters: the optimizer's own, then those that another optimizer steps."""
        outside = self._outside.trainable(self.precision.name, self.aggregator)
        return [p for p in self._model_parameters if p.requires_grad] + outside

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Places the hooks for one forward pass, under ``no_sync`` if DDP must not reduce the gradients."""
        inner = self._prepare(model)
        device = next(inner.parameters()).device.type
        self._pending, capture = None, SharedCapture(self.shared, self._own_calls)
        self.epochs.end_epoch_if_over()
        if self.policy.may_skip:
            self.buffers.before_forward(inner)
        if self.second_look is not None:
            self.second_look.before_forward()
        hooks = [
            checks.find_shared(inner, self.shared).register_forward_hook(capture),
            inner.register_forward_hook(lambda *call: self._after_forward(capture, *call), with_kwargs=True),
        ]
        no_sync = getattr(model, 'no_sync', nullcontext)
        try:
            with (
                checks.refuse_second_wrapper(inner),
                no_sync() if self.level is not None or not self.should_sync() else nullcontext(),
                self.precision.autocast(device),
            ):
                yield
        finally:
            for hook in hooks:
                hook.remove()
        checks.check_fired(capture, inner, self._pending is not None)

    # ---- inside the forward ----

    def _after_forward(
        self, capture: SharedCapture, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any
    ) -> dict[str, Tensor] | None:
        """Replaces the loss dict of the model by the objective and the values for the log."""
        if kwargs.get('mode', args[-1] if args else None) != 'loss' or not capture.fired:
            return None  # optim_context names the module that did not run once the hooks are gone
        capture.check_unmodified()
        with torch.autocast(capture.views[0].device.type, enabled=False):
            losses = self._collect(outputs, capture.facts(self.aggregator))
            step = self._objective(capture, losses, getattr(model, 'task_slices', None))
        if step.found is not None:
            self.policy.record(step.found, self._inner_count)
        if self.second_look is not None:
            self.second_look.after_forward(model, args, kwargs)
        self._pending = step
        return {'loss': step.loss, **step.log}

    def _objective(self, capture: SharedCapture, losses: TaskLosses, slices: Mapping[str, slice] | None) -> Step:
        full_report = self._log_due()
        context = RegularizerContext(
            scale=self.precision.scale,
            backward_scale=self.scale_loss(1.0),
            slices=slices,
            process_group=self.process_group,
            measure_gradient=full_report and self.aggregator is None,
            own_backward=self.aggregator is not None,
            iteration=self._inner_count,
            advance=False,
        )
        return objective(
            losses,
            capture.views,
            capture.levels(self.prefixes),
            weighting=self.weighting,
            regularizers=self.regularizers,
            loss_transform=self.loss_transform,
            context=context,
            last=self.should_sync(),
            full_report=full_report,
            skipped=self.policy.found is not None,
        )

    def _collect(self, outputs: Mapping[str, Any], facts: Mapping[str, str] | None = None) -> TaskLosses:
        found = collect(outputs, self.prefixes, self.extra_losses, self._agreed, facts)
        return self._zeros.mark_unlabelled(found, self._inner_count)

    # ---- backward and step ----

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Runs the backward of the objective; with an aggregator that of each task, and combines the gradients."""
        if self._pending is None:
            raise RuntimeError(
                'MultiTaskOptimWrapper: backward without a forward inside optim_context; no method acted'
            )
        step, self._pending = self._pending, None
        self.precision.make_scaler_state(loss.device)
        if self.policy.found is None:
            try:
                self._backward(step, loss, kwargs)
            except NonFinite as error:
                self.policy.record(error, self._inner_count)
            else:
                if self._log_due():
                    report_gradients(self, step)
        self._inner_count += 1

    def _backward(self, step: Step, loss: Tensor, kwargs: dict[str, Any]) -> None:
        trainable = self._trainable()
        if self.level is None:
            if checks.check_has_graph(loss):
                (loss * step.scale).backward(**kwargs)
                checks.check_reached(self.prepared, self._model_parameters)
            keep_layouts(self._model_parameters)
            self._objectives = step.objectives if step.last else ()
            return
        if learned := self.weighting.learned():
            torch.autograd.backward(step.weighted * (step.factor * step.scale), inputs=learned, retain_graph=True)
        self.level.backward(step, trainable)

    def _log_due(self) -> bool:
        return self.diagnostics_interval > 0 and self._inner_count % self.diagnostics_interval == 0

    def step(self, **kwargs: Any) -> None:
        """Unscales, checks, clips and steps; skips the step if a loss or gradient was not finite."""
        self.precision.unscale(self.optimizer)
        try:
            if self.policy.found is None and self.level is None:  # a level checks its gradients itself
                check_gradients(self.optimizer.param_groups, self._objectives, list(self.prefixes))
        except NonFinite as error:
            self.policy.record(error, self._inner_count - 1)
        self._objectives = ()
        if self.policy.found is not None:
            self._skip()
            return
        with checks.explain_sparse(self._model_parameters, self.prepared):
            self._clip_grad()
            self.precision.step(self.optimizer, **kwargs)
        if self.level is not None:
            self.level.apply_updates(self.optimizer)
        self.policy.count_step()
        self.buffers.forget()
        self.weighting.end_step()
        for regularizer in self.regularizers:
            regularizer.end_step()
        if self.second_look is not None:
            with self.precision.autocast(self._model_parameters[0].device.type):
                self.second_look.repeat(self.weighting, self._collect)

    def _skip(self) -> None:
        """Drops this window: weights, buffers, optimizer and methods are as they were before it."""
        self.buffers.restore()
        self._outside.drop_gradients()  # the optimizer that has them makes no step either
        self.weighting.drop_window()
        for regularizer in self.regularizers:
            regularizer.drop_window()
        if self.level is not None:
            self.level.drop()
        if self.second_look is not None:
            self.second_look.forget()
        self.precision.back_off()
        self.policy.count_skip(self._inner_count - 1)
        self.message_hub.update_scalar('train/skipped_steps', float(self.policy.total))

    def _clip_grad(self) -> None:
        """Clips the model's gradients; learned weights of a method are no part of the norm."""
        if self.clip_grad_kwargs:
            clip_gradients(self, self._model_parameters)

    # ---- state ----

    def state_dict(self) -> State:
        """Returns the optimizer's state, and under ``'multi_task'`` that of the method."""
        state = self._optimizer_state()
        if (scaler := self.precision.state_dict()) is not None:
            state['loss_scaler'] = scaler
        state['multi_task'] = method_state(self)
        return state

    def load_state_dict(self, state_dict: State) -> None:
        """Restores :meth:`state_dict`.

        Raises:
            OtherRun: If the state is of another method or number of processes, unless ``force_resume``.
        """
        load_wrapper_state(self, dict(state_dict))

    # ---- overridden by the optim wrapper with several optimizers ----

    def _optimizer_settings(self) -> list[str] | None:
        return None

    def _learning_wrapper(self) -> OptimWrapper:
        return self

    def _optimizer_state(self) -> State:
        state: State = OptimWrapper.state_dict(self)
        return state

    def load_optimizer(self, state: State, same: bool) -> None:
        """Restores the optimizer; ``same`` says whether the method, and so its learned weights, are the same."""
        if not same:
            state = without_learned(state, self.optimizer, len(self._model_parameters), self.has_learned)
        OptimWrapper.load_state_dict(self, state)
