"""FAMO. Dimensions: T tasks."""

import torch
from torch import Tensor

from mmrepmtl.methods.facts import Facts
from mmrepmtl.methods.positive import check_positive

from .history import HistoryWeighting, labelled_mask, masked_softmax, weighted_sum


class FAMO(HistoryWeighting):
    """Fast adaptive multitask optimisation (FAMO): weights under which all losses fall at the same relative rate.

    Source: Liu et al., "FAMO: Fast Adaptive Multitask Optimization", NeurIPS 2023, Algorithm 1. With z = softmax(xi)

        w_t = c z_t / L_t,        c = 1 / sum_k z_k / L_k        (so the weights sum to 1),

    and after the step, from the losses L' of the same batch,

        delta_t = sum_k (d z_k / d xi_t) (log L_k - log L'_k),        xi <- xi - beta (delta + gamma xi).

    The step of xi is one of Adam, as in the public code, with ``lr`` for beta and ``weight_decay`` for gamma (added to
    the gradient, not decoupled). The default gamma is that of the authors' QM9 script and of LibMTL; defaults of the
    public code's two classes are 0.01 and 1e-5. Its epsilon under the logarithms and its optional minimal losses are
    left out. It clips the shared gradient to norm 1 (in the experiments before the backward, where there is none): that
    is the trainer's ``clip_grad`` here. It minimises ``c sum_t z_t log L_t`` with constant c, and reports z; the scalar
    here is ``sum_t w_t L_t = c``, with the same gradient w.

    Extra cost: one forward pass per step. Accumulation: c and w of each micro-batch are of its own losses; delta is of
    the means over the window before and after the step. DDP: of the global losses. An unlabelled task is left out: the
    softmax, c and the Jacobian are over the labelled ones, and its xi and Adam's state, the step count too, stay. So is
    a task whose loss after the step is not finite.

    Args:
        lr: Adam's learning rate for the task logits, beta.
        weight_decay: Regularisation of the task logits, gamma.
    """

    facts = Facts(
        paper='Liu et al., NeurIPS 2023, Algorithm 1',
        rule=(
            r'$w_t \propto z_t / L_t$, $z = \mathrm{softmax}(\xi)$; $\xi$ learns from the fall of $\log L_t$ '
            'on the same batch after the step'
        ),
        convention=(
            "xi by Adam with gamma 1e-3, as the authors' QM9 script and LibMTL (their two classes: 0.01, 1e-5); "
            'weights sum to 1; no clipping to norm 1 of its own: set `clip_grad`'
        ),
        unlabelled="left out; xi and Adam's count for it stay",
        step='1/T of that of `ew`',
        state="xi and Adam's moments for it (T each)",
        equal_parts=False,
        accumulation='xi learns from mean losses',
    )

    loss_transform = 'own'
    second_look = True
    logits_T: Tensor
    moment_T: Tensor
    square_T: Tensor
    updates_T: Tensor
    before_T: Tensor

    _BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8  # Adam's usual

    def __init__(self, lr: float = 0.025, weight_decay: float = 1e-3) -> None:
        # before_T: the losses of the last step; NaN where there are none, or after_step has had them.
        super().__init__(logits_T=0.0, moment_T=0.0, square_T=0.0, updates_T=0.0, before_T=torch.nan)
        self.lr, self.weight_decay = lr, weight_decay

    def forward(self, losses_T: Tensor, labelled_T: Tensor | None = None, advance: bool = True) -> Tensor:
        """Returns ``sum_t w_t L_t``.

        Raises:
            ValueError: If a loss is not positive.
        """
        self.setup(len(losses_T))
        mask_T = labelled_mask(losses_T, labelled_T)
        check_positive(self, losses_T, mask_T)
        # c z / L is a softmax too: it never divides, whatever the scale of the losses.
        weights_T = masked_softmax(self.logits_T - losses_T.detach().double().log(), mask_T)
        self.record(losses_T, mask_T, advance)
        return weighted_sum(losses_T, weights_T)

    def close_step(self, means_T: Tensor, seen_T: Tensor) -> None:
        """Remembers the losses before the step."""
        self.before_T = torch.where(seen_T, means_T, torch.nan)

    @torch.no_grad()
    def after_step(self, losses_T: Tensor, labelled_T: Tensor | None = None) -> None:
        """Updates the task logits; without a step since the last call it does nothing.

        Args:
            losses_T: Losses of the same batch after the step, (T,).
            labelled_T: As in :meth:`forward`.

        Raises:
            ValueError: If a loss is not positive.
        """
        self.setup(len(losses_T))
        mask_T = labelled_mask(losses_T, labelled_T)
        check_positive(self, losses_T, mask_T)
        mask_T = mask_T & losses_T.isfinite() & ~self.before_T.isnan()
        fall_T = torch.where(mask_T, self.before_T.log() - losses_T.double().log(), 0)
        z_T = masked_softmax(self.logits_T, mask_T)
        gradient_T = z_T * (fall_T - z_T @ fall_T) + self.weight_decay * self.logits_T
        self._adam(gradient_T, mask_T)
        self.before_T = torch.full_like(self.before_T, torch.nan)

    def _adam(self, gradient_T: Tensor, mask_T: Tensor) -> None:
        """One step of Adam for the tasks in the mask, each with its own count of steps."""
        count_T = self.updates_T + 1
        moment_T = self._BETA_1 * self.moment_T + (1 - self._BETA_1) * gradient_T
        square_T = self._BETA_2 * self.square_T + (1 - self._BETA_2) * gradient_T**2
        root_T = (square_T / (1 - self._BETA_2**count_T)).sqrt() + self._EPSILON
        logits_T = self.logits_T - self.lr * moment_T / (1 - self._BETA_1**count_T) / root_T
        self.updates_T = torch.where(mask_T, count_T, self.updates_T)
        self.moment_T = torch.where(mask_T, moment_T, self.moment_T)
        self.square_T = torch.where(mask_T, square_T, self.square_T)
        self.logits_T = torch.where(mask_T, logits_T, self.logits_T)
