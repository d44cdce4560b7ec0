"""Rep-MTL: representation-level task saliency (ICCV 2025, arXiv 2507.21049).

The saliency of a task is the gradient of its loss at the shared representation Z. Two penalties on it join the
objective: TSR (:mod:`~mmrepmtl.methods.tsr`) and CSA (:mod:`~mmrepmtl.methods.csa`).

Dimensions: L levels, T tasks, B samples, C channels, N positions.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmrepmtl.methods.collectives import Ranks, full_precision
from mmrepmtl.methods.csa import align, as_positions, cross_task_saliency_alignment
from mmrepmtl.methods.facts import Facts, Term
from mmrepmtl.methods.gradient_ratio import BackwardRecord, combine_tasks, squared_norms
from mmrepmtl.methods.regularizer import PLAIN, Regularizer, RegularizerContext
from mmrepmtl.methods.rep_mtl_checks import Watch, check_arguments
from mmrepmtl.methods.rep_mtl_inputs import count_samples, exchange, find_sources
from mmrepmtl.methods.saliency import (
    LAYOUTS,
    Representation,
    check_twice_differentiable,
    differentiate,
    identity_views,
    name_losses,
    stack_levels,
    task_saliency,
)
from mmrepmtl.methods.target_ratio import TargetRatio
from mmrepmtl.methods.tsr import ownership, task_saliency_regulation

__all__ = [
    'RegularizerContext',
    'RepMTL',
    'cross_task_saliency_alignment',
    'identity_views',
    'task_saliency',
    'task_saliency_regulation',
]


class RepMTL(Regularizer):
    """The Rep-MTL regulariser: ``lambda_tsr * TSR + lambda_csa * CSA`` of the saliency of the tasks.

    Args:
        lambda_tsr: Weight of TSR.
        lambda_csa: Weight of CSA.
        temperature: Divisor of CSA's similarities. Not stated in the paper; 0.1 is far too strong.
        gather_negatives: CSA contrasts with the samples of all processes, and is then equal to one process on the whole
            batch. Otherwise each process contrasts its own, and the mean over processes is taken.
        shared_samples: ``False`` where each task has samples of its own; these are paired by position.
            ``representation`` is then {task: Z_t}, or one tensor with the ``slices`` of the tasks in the context.
            ``None``: as the representation says.
        saliency_transform: ``'log'``: the saliency is that of log losses, whose factor 1 / loss is a constant.
            ``None``: that of the losses.
        layout: ``'NCHW'``, ``'NHWC'`` or ``'NLC'`` (tokens); B x C maps go with each of the first two.
        num_prefix_tokens: Leading tokens (class, registers) that are left out; ``'NLC'`` only.
        through: ``'all'``: the penalty's gradient reaches encoder and heads. ``'representation'``: only the encoder,
            through Z. The gradient of both penalties is then carried by one of the two terms, so only their sum's is
            meaningful.
        warmup_iters: Optimizer steps over which both weights grow linearly from 0.
        saliency_floor: TSR leaves out the positions whose summed saliency is below this fraction of the batch mean.
        interval: The penalty is computed at every ``interval``-th optimizer step, times ``interval``. Under Adam or
            clipping this is not the same as a penalty at each step.
        target_ratio: Ours, not the paper's. A number, for example 0.05: one factor of both weights is chosen in each
            step so that the norm at Z of the penalty's gradient over that of the tasks' is this number on a running
            average (:class:`~mmrepmtl.methods.target_ratio.TargetRatio`); the weights then say the shares of TSR and
            CSA only, and with ``interval`` the ratio is the mean over all steps. Its cost is arithmetic on tensors as
            large as Z. Under ``'all'``, steps whose ratio cannot be told from rounding or from the past (the first
            one, and the begin of a warm-up) send the penalty through Z only. ``None``: the weights are as they are.

    Attributes:
        measure_gradient: Whether ``diagnostics`` gets ``grad_ratio`` after each call, and not only after those whose
            context asks for it. It costs some arithmetic on tensors as large as Z.

    Raises:
        ValueError: An argument out of its range.
    """

    facts = Facts(
        paper='arXiv 2507.21049, ICCV 2025, Eq. 3-10',
        rule='',
        convention=(
            'the paper gives weights; without `-paper`, [a held ratio](#the-strength-of-rep-mtl) gives their scale s; '
            'temperature 1, saliency of log losses, negatives of all ranks: arguments of `RepMTL`, whose docstring '
            'says where the paper is silent'
        ),
        unlabelled='left out of the penalty',
        step='in units of log losses',
        state='count of steps, scale',
        equal_parts=False,
        accumulation='`interval` and `warmup_iters` count steps',
        terms=dict(
            lambda_tsr=Term(r'L_{\mathrm{tsr}}'),
            lambda_csa=Term(r'L_{\mathrm{csa}}', accumulation='negatives of its own', reduced='anchors are gathered'),
            target_ratio=Term('', accumulation='the ratio is that of the window', reduced='squared norms at Z'),
        ),
        scale='target_ratio',
    )

    name = 'rep_mtl'
    always_logged = ('tsr', 'csa', 'scale')
    num_steps: Tensor

    def __init__(
        self,
        lambda_tsr: float = 0.9,
        lambda_csa: float = 0.9,
        temperature: float = 1.0,
        gather_negatives: bool = True,
        shared_samples: bool | None = None,
        saliency_transform: str | None = 'log',
        layout: str = 'NCHW',
        num_prefix_tokens: int = 0,
        through: str = 'all',
        warmup_iters: int = 0,
        saliency_floor: float = 0.0,
        interval: int = 1,
        target_ratio: float | None = None,
    ) -> None:
        super().__init__()
        check_arguments(
            choices=dict(
                saliency_transform=(saliency_transform, (None, 'log')),
                layout=(layout, LAYOUTS),
                through=(through, ('all', 'representation')),
            ),
            numbers=dict(
                lambda_tsr=(lambda_tsr, 0),
                lambda_csa=(lambda_csa, 0),
                num_prefix_tokens=(num_prefix_tokens, 0),
                warmup_iters=(warmup_iters, 0),
                interval=(interval, 1),
                saliency_floor=(saliency_floor, 0),
            ),
        )
        if not temperature > 0:
            raise ValueError(f'RepMTL: temperature must be positive, got {temperature!r}')
        if target_ratio is not None and not 0 < target_ratio < math.inf:
            raise ValueError(f'RepMTL: target_ratio must be a positive number or None, got {target_ratio!r}')
        if num_prefix_tokens and layout != 'NLC':
            raise ValueError(f"RepMTL: num_prefix_tokens={num_prefix_tokens} needs layout='NLC', got {layout!r}")
        self.lambda_tsr, self.lambda_csa, self.temperature = lambda_tsr, lambda_csa, temperature
        self.gather_negatives, self.shared_samples = gather_negatives, shared_samples
        self.saliency_transform = saliency_transform
        self.layout, self.num_prefix_tokens, self.through = layout, num_prefix_tokens, through
        self.warmup_iters, self.saliency_floor, self.interval = warmup_iters, saliency_floor, interval
        self.target_ratio = target_ratio
        self.measure_gradient = False
        # Optimizer steps so far, in the checkpoint: a resumed run keeps its interval and its warmup.
        self.register_buffer('num_steps', torch.zeros((), dtype=torch.long))
        # No part of the state without it, so that the checkpoints of fixed weights stay as they were.
        self.strength = None if target_ratio is None else TargetRatio(target_ratio)
        self._values: dict[str, Tensor] = {}
        self._squares: dict[int, Tensor] = {}
        self._watch = Watch()
        self._checked: set[str] = set()

    def __repr__(self) -> str:
        return f'RepMTL({self.extra_repr()})'  # one line: its parts have no settings of their own

    def extra_repr(self) -> str:
        """The settings, for the log."""
        names = (
            'lambda_tsr lambda_csa temperature gather_negatives saliency_transform through warmup_iters saliency_floor '
            'interval target_ratio'
        ).split()
        return ', '.join(f'{name}={getattr(self, name)!r}' for name in names)

    @property
    def _remedies(self) -> list[str]:
        """The settings that protect a task that owns little, without those that are made already."""
        if self.through == 'all':  # a held ratio alone does not keep a head from shrinking its saliency
            return ['lambda_tsr=0', "through='representation' with target_ratio=0.05"]
        return ['lambda_tsr=0', *['target_ratio=0.05'] * (self.strength is None)]

    @property
    def needs_positive_losses(self) -> bool:
        """Whether the saliency is that of log losses."""
        return self.saliency_transform == 'log'

    def forward(
        self, losses: Mapping[str, Tensor], representation: Representation, context: RegularizerContext = PLAIN
    ) -> dict[str, Tensor]:
        """Computes both terms; see :class:`~mmrepmtl.methods.regularizer.Regularizer`.

        Args:
            losses: {task: scalar loss}, attached, not transformed, unweighted.
            representation: The very tensor(s) that the heads read; several levels, or what deeper layers read too, as
                :func:`identity_views`.
            context: What is known about this step. Its ``scale`` cannot help where TSR's gradient exceeds float16 at a
                position whose saliencies cancel: there use ``saliency_floor``. Its ``task_weights`` and
                ``backward_scale`` are for the ratio of the gradients; without ``task_weights`` the objective is taken
                for the sum of the losses, transformed as ``saliency_transform`` says.

        Returns:
            ``loss_tsr`` and ``loss_csa``, times their weight, warmup and interval; zeros at the steps without penalty.

        Raises:
            ValueError: A loss <= 0 under ``'log'``, a loss that does not depend on Z, or a head that cannot be
                differentiated twice; each names the task. ``target_ratio`` through all beside another penalty.
        """
        self._watch.warn = context.warn
        self._watch.look()
        losses = name_losses(losses)
        # Reading a counter on the accelerator would wait for it.
        step = int(self.num_steps) if self.interval > 1 or self.warmup_iters else 0
        if context.advance:
            self.end_step()
        if step % self.interval or not (self.lambda_tsr or self.lambda_csa):
            zero = next(iter(losses.values())).new_zeros(())
            return dict(loss_tsr=zero, loss_csa=zero.clone())
        factor = self.interval * (min(1.0, step / self.warmup_iters) if self.warmup_iters else 1.0)
        with full_precision(next(iter(losses.values())).device.type):
            return self._penalty(losses, representation, context, factor)

    def _penalty(
        self, losses: Mapping[str, Tensor], representation: Representation, context: RegularizerContext, factor: float
    ) -> dict[str, Tensor]:
        scale, slices = context.scale, context.slices
        sources = find_sources(losses, representation, slices, self.shared_samples)
        ranks, length = Ranks(context.process_group), count_samples(losses, sources, slices)
        transform, sizes = exchange(losses, sources, ranks, length, self.layout, self.saliency_transform)
        if self.lambda_csa:
            self._watch.look_at_samples(length, sum(sizes), self.gather_negatives)
        gradients = differentiate(losses, sources, {task: scale * transform[task] for task in losses})
        # A loss without a label has another graph (a zero), so each task is looked at until its saliency is not zero.
        if unchecked := {task: loss for task, loss in losses.items() if task not in self._checked}:
            check_twice_differentiable(unchecked, sources, gradients)
            self._checked |= {task for task in unchecked if any(bool(part.any()) for part in gradients[task])}
        # Both penalties are invariant to the scale, so it stays in: dividing would copy the saliency.
        levels = stack_levels(gradients, self.layout, self.num_prefix_tokens, slices)
        levels = [as_positions(level) for level in levels]
        tsr, csa = self._measure(losses, levels, ranks, sizes)
        self._squares, weights = {}, (self.lambda_tsr, self.lambda_csa)
        applied: float | Tensor = factor
        through_z = self.through == 'representation'
        if self.strength is not None:
            # The larger weight is 1 here, so that no loss scale overflows, whatever the weights are.
            weights = self.lambda_tsr / max(weights), self.lambda_csa / max(weights)
            self.strength.begin(tsr, context.process_group)
            through_z |= self._is_unmeasurable(self.strength, context, factor, sources)
            applied = 1.0 if through_z else factor * self.strength.scale()
        terms = dict(loss_tsr=applied * weights[0] * tsr, loss_csa=applied * weights[1] * csa)
        measured = self.measure_gradient or context.measure_gradient or self.strength is not None
        tasks = combine_tasks(sources, gradients, transform, context) if measured else {}
        if through_z:
            return self._through_representation(terms, sources, scale, tasks, factor)
        record = BackwardRecord(self._squares, scale * context.backward_scale, context.own_backward)
        then = None
        if self.strength is not None:
            self._values['scale'] = self._applied_scale(applied, factor)
            add, square = self.strength.add, torch.as_tensor(applied).detach() ** 2

            def then(squares: Tensor) -> None:
                add(torch.stack([squares[0] / square, squares[1]]))

        if tasks:
            record.wait_for(terms.values())
        for index, (source, part) in tasks.items():
            record.record(index, source, part, then)
        return terms

    def _is_unmeasurable(
        self,
        strength: TargetRatio,
        context: RegularizerContext,
        factor: float,
        sources: Mapping[str, list[Tensor]],
    ) -> bool:
        """Whether the backward cannot tell the penalty's gradient, so that it has to be known before."""
        if self.through == 'all' and not context.alone:
            raise ValueError(
                "RepMTL: target_ratio with through='all' measures all that reaches Z beyond the tasks' gradients, and "
                'another regulariser or a loss of no task does so too; set '
                "through='representation', or target_ratio=None"
            )
        share = strength.target * factor / self.interval
        precision = max(torch.finfo(level.dtype).eps for levels in sources.values() for level in levels)
        return not strength.known or share < (torch.finfo(torch.float32).tiny if context.own_backward else precision)

    def _measure(
        self, losses: Mapping[str, Tensor], levels: list[Tensor], ranks: Ranks, sizes: list[int]
    ) -> tuple[Tensor, Tensor]:
        """Both terms, unweighted, averaged over the levels, and their diagnostics."""
        negatives = ranks if self.gather_negatives else Ranks(enabled=False)
        # TSR first: the backward then adds its gradient into CSA's, and no third tensor as large as the saliency is
        # made.
        owners = [ownership(level, self.saliency_floor, ranks) for level in levels]
        shares_LT = torch.stack([owner.share_T for owner in owners])
        tsr = torch.stack([owner.loss for owner in owners]).mean()
        share_T = shares_LT.mean(0)
        limit = math.log(max(len(losses), 2))
        self._values = dict(tsr=tsr.detach(), entropy=tsr.detach() / limit)
        self._values |= {f'share/{task}': share for task, share in zip(losses, share_T, strict=True)}
        if self.lambda_tsr and len(losses) > 1:
            entropy = torch.stack([owner.entropy for owner in owners]).mean() / limit
            self._watch.note_owners(list(losses), entropy, shares_LT, self._remedies)
        if not self.lambda_csa:
            return tsr, tsr.new_zeros(())
        own_sizes = sizes if self.gather_negatives else [levels[0].shape[1]]
        results = [align(level, self.temperature, negatives, own_sizes) for level in levels]
        csa, positive, negative = (torch.stack(parts).mean() for parts in zip(*results, strict=True))
        self._values |= dict(csa=csa.detach(), positive=positive, negative=negative)
        return (tsr if self.lambda_tsr else tsr.detach()), csa

    def _through_representation(
        self,
        terms: dict[str, Tensor],
        sources: Mapping[str, list[Tensor]],
        scale: float | Tensor,
        tasks: dict[int, tuple[Tensor, Tensor]],
        factor: float,
    ) -> dict[str, Tensor]:
        """Replaces the graph of the terms by one that carries the penalty's gradient at Z, and nothing to the heads."""
        total = terms['loss_tsr'] + terms['loss_csa']
        unique = {id(source): source for levels in sources.values() for source in levels}
        found: tuple[Tensor | None, ...] = (None,) * len(unique)
        if total.requires_grad:
            # A low-precision Z needs the scale in this backward as it does in the final one.
            found = torch.autograd.grad(total * scale, list(unique.values()), retain_graph=True, allow_unused=True)
        gradients = {
            index: (torch.zeros_like(source) if gradient is None else gradient).to(total.dtype) / scale
            for (index, source), gradient in zip(unique.items(), found, strict=True)
        }
        squares = {index: squared_norms(gradients[index], part) for index, (_, part) in tasks.items()}
        applied: float | Tensor = 1.0
        if self.strength is not None:
            together = torch.stack(list(squares.values())).sum(0)
            self.strength.add(together)
            applied = self.strength.scale() if self.strength.known else self.strength.scale_of(together)
            self._values['scale'] = self._applied_scale(applied, 1.0)
            applied = factor * applied
        self._squares = {index: torch.stack([pair[0] * applied**2, pair[1]]) for index, pair in squares.items()}
        carrier = total.new_zeros(())
        for index, source in unique.items():
            carrier = carrier + (source.to(total.dtype) * gradients[index] * applied).sum()
        terms = {name: applied * term.detach() for name, term in terms.items()}
        name = 'loss_csa' if self.lambda_csa else 'loss_tsr'
        terms[name] = terms[name] + (carrier - carrier.detach())
        return terms

    def _applied_scale(self, applied: float | Tensor, factor: float) -> Tensor:
        """The factor of both weights, for the log."""
        return torch.as_tensor(applied).detach() / (factor * max(self.lambda_tsr, self.lambda_csa))

    @property
    def diagnostics(self) -> dict[str, float]:
        """The measurements of the last call that computed the penalty.

        ``tsr`` and ``csa`` (unweighted), ``entropy`` (TSR / ln T), ``share/TASK`` (mean ownership), ``positive`` and
        ``negative`` (mean similarities) and, after the backward where ``measure_gradient`` is set, ``grad_ratio``: the
        norm at Z of the penalty's gradient over that of the tasks'. With ``target_ratio`` also ``scale``, the factor of
        both weights. The mean over ranks of the first three is that of the whole batch.
        """
        self._watch.look()
        values = {name: float(value) for name, value in self._values.items()}
        if (squares := self.gradient_squares) is not None:
            penalty, tasks = squares.sqrt().tolist()
            values['grad_ratio'] = penalty / tasks if tasks else math.inf if penalty else 0.0
        return values

    @property
    def gradient_squares(self) -> Tensor | None:
        """Squared norms at Z of the penalty's gradient and of the tasks', (2,), this process's samples."""
        return torch.stack(list(self._squares.values())).sum(0) if self._squares else None

    def end_step(self) -> None:
        """Counts an optimizer step."""
        if self.strength is not None:
            self.strength.end_step()
        self.num_steps += 1

    def drop_window(self) -> None:
        """Forgets the ratios of a step that is skipped."""
        if self.strength is not None:
            self.strength.drop_window()

    def shown_state(self) -> dict[str, Any]:
        """The last measurements; the distinct tensors of Z are numbered, because their identities change."""
        values = {name: value.detach().cpu() for name, value in self._values.items()}
        squares = {number: value.detach().cpu() for number, value in enumerate(self._squares.values())}
        state: dict[str, Any] = dict(values=values, squares=squares) if values or squares else {}
        window = {} if self.strength is None else self.strength.window_state()
        return state | (dict(window=window) if window else {})

    def load_shown_state(self, state: Mapping[str, Any]) -> None:
        """Restores :meth:`shown_state`."""
        device = self.num_steps.device
        self._values = {name: value.to(device) for name, value in state.get('values', {}).items()}
        self._squares = {number: value.to(device) for number, value in state.get('squares', {}).items()}
        if self.strength is not None:
            self.strength.load_window_state(state.get('window', {}))
