"""IGBv2. Dimensions: T tasks."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmrepmtl.methods.facts import Facts
from mmrepmtl.methods.positive import check_positive

from .history import EpochWeighting, labelled_mask, weighted_sum
from .sac import SoftActorCritic


class IGBv2(EpochWeighting):
    """Improvable gap balancing by reinforcement learning (IGBv2): an agent chooses the weights of the log losses.

    Source: Dai, Fei and Lu, "Improvable Gap Balancing for Multi-Task Learning", UAI 2023, and the authors' public code,
    whose numbers are the defaults here. The scalar is ``sum_t w_t log L_t`` with weights that sum to T. In each step

        state   s = L / L_base,           the gaps; L_base: the mean losses of the second epoch
        action  w = T softmax(u),         u drawn from the actor, a Gaussian policy
        reward  r = min_t (L_t - L'_t) / L_base,t,      L': the losses of the next step

    and every ``update_every`` steps a soft actor-critic (:class:`SoftActorCritic`) learns from the last ``buffer_size``
    steps: ``update_every k / 2`` updates with batches of ``256 k / 2``, k = 1 + the fraction of the buffer filled. The
    weights are random (the softmax of normal numbers) for the first ``random_epochs``; steps are remembered from the
    third epoch on and learned from after ``learn_after`` epochs.

    Choices:

    * The state is in units of L_base (the public code feeds the losses themselves): losses of 1e-6 or 1e6 would
      otherwise leave the networks blind or blow them up.
    * The public code's NYUv2 trainer divides the reward by the decay of the learning rate so far. A weighting does not
      know it; with a decaying rate rewards shrink, which the learned temperature of the entropy follows.
    * Actor, critics, their optimizers and the buffer belong to the method: they are in ``state_dict()``, on the CPU, in
      float32, and the run's optimizer never sees them.

    Extra cost: small networks on the CPU every ``update_every`` steps, and one read of the losses per step.
    Accumulation: the action is drawn at the first micro-batch of a step, from that one's losses, and holds for all of
    them; state and reward are of the means over the window. DDP: every rank holds the same agent, which sees global
    losses and equal random numbers; ranks need the same kind of CPU for it to stay the same to the last bit. An
    unlabelled task is left out: its weight is 0 and the others are scaled to sum to their number, the reward is over
    the labelled ones, and in the state it stands with its last loss. A task without a loss or a base so far stands with
    1; a base missing after the second epoch is taken from the first later one with a label.

    Args:
        lr: Adam's learning rate for the agent.
        buffer_size: Number of steps that the agent remembers.
        random_epochs: Number of epochs with random weights.
        learn_after: Number of epochs before the agent learns.
        update_every: Number of optimizer steps between its updates.
        interval: Number of optimizer steps that count as an epoch; None: the trainer's epochs.
        seed: Seed of all random numbers; the same on all ranks.

    Raises:
        ValueError: If ``buffer_size``, ``update_every`` or ``interval`` is less than 1.
    """

    facts = Facts(
        paper='Dai et al., Improvable Gap Balancing, UAI 2023',
        rule=(
            r'$\sum_t w_t \log L_t$; a soft actor-critic chooses $w$, its reward is the smallest relative fall '
            'of a loss'
        ),
        convention=(
            'the agent sees L / L_base, for losses of any unit (public code: L); rewards are not divided by the decay '
            'of the learning rate, which a weighting does not know'
        ),
        unlabelled='weight 0, the others are scaled to sum to their number; it stands in the state with its last loss',
        step='in units of log losses',
        state='agent, its optimizers, 10,000 transitions, base losses of an epoch',
        work='small networks on the CPU',
        equal_parts=False,
        accumulation='one action for the window; state and reward are of mean losses',
    )

    loss_transform = 'own'
    base_T: Tensor
    latest_T: Tensor

    BASE_EPOCH, BATCH_SIZE = 1, 256

    def __init__(
        self,
        lr: float = 3e-4,
        buffer_size: int = 10000,
        random_epochs: int = 5,
        learn_after: int = 3,
        update_every: int = 50,
        interval: int | None = None,
        seed: int = 0,
    ) -> None:
        if buffer_size < 1 or update_every < 1:
            raise ValueError(
                f'IGBv2: buffer_size and update_every must be at least 1, got {buffer_size!r} and {update_every!r}'
            )
        super().__init__(interval, base_T=torch.nan, latest_T=torch.nan)
        self.lr, self.buffer_size, self.update_every = lr, buffer_size, update_every
        self.random_epochs, self.learn_after = random_epochs, learn_after
        self.generator = torch.Generator().manual_seed(seed)
        self.agent: SoftActorCritic | None = None
        self.total_steps = 0
        self.action_T: Tensor | None = None  # that of an unfinished step
        self._undrawn: Tensor | None = None  # the generator's state before that was drawn
        self.previous_T: Tensor | None = None  # that of the step before, as applied

    def setup(self, num_tasks: int) -> None:
        """Makes the buffers and the agent. Idempotent."""
        super().setup(num_tasks)
        if self.agent is None:
            self.agent = SoftActorCritic(num_tasks, num_tasks, self.generator, self.lr, self.buffer_size)

    def forward(self, losses_T: Tensor, labelled_T: Tensor | None = None, advance: bool = True) -> Tensor:
        """Returns ``sum_t w_t log L_t``.

        Raises:
            ValueError: If a loss is not positive.
        """
        self.setup(len(losses_T))
        mask_T = labelled_mask(losses_T, labelled_T)
        check_positive(self, losses_T, mask_T)
        if self.action_T is None:
            self._undrawn = self.generator.get_state()
            self.action_T = self._choose(torch.where(mask_T, losses_T.detach(), self.latest_T))
        weights_T = _rescaled(self.action_T.to(losses_T.device), mask_T)
        self.record(losses_T, mask_T, advance)
        return weighted_sum(torch.where(mask_T, losses_T, 1).double().log(), weights_T).to(losses_T.dtype)

    def drop_window(self) -> None:
        """Forgets the micro-batches since the last step, and the action that was chosen by their losses."""
        super().drop_window()
        if self.action_T is not None and self._undrawn is not None:
            self.generator.set_state(self._undrawn)
            self.action_T = None

    def _choose(self, losses_T: Tensor) -> Tensor:
        if self.epoch_count < self.random_epochs:
            return len(losses_T) * torch.randn(len(losses_T), generator=self.generator).softmax(0)
        assert self.agent is not None  # setup has made it
        return self.agent.act(self._state(losses_T))

    def _state(self, losses_T: Tensor) -> Tensor:
        """The state that the agent sees, (T,) float32 on the CPU; NaN losses are not known."""
        return (losses_T / self.base_T).nan_to_num(nan=1.0).float().cpu()

    def close_step(self, means_T: Tensor, seen_T: Tensor) -> None:
        """Gives the agent the step and lets it learn when it is time."""
        action_T, self.action_T = self.action_T, None
        if not seen_T.any():
            return
        assert self.agent is not None and action_T is not None  # forward has made both
        now_T = torch.where(seen_T, means_T, self.latest_T)
        gains_T = (self.latest_T - now_T) / self.base_T
        gains = gains_T[seen_T & ~gains_T.isnan()]
        if len(gains) and self.previous_T is not None:
            self.agent.remember(self._state(self.latest_T), self.previous_T, gains.min().cpu(), self._state(now_T))
        self.total_steps += 1
        if self.agent.count and self.epoch_count >= self.learn_after and self.total_steps % self.update_every == 0:
            k = 1 + self.agent.fill
            for _ in range(max(1, int(self.update_every * k / 2))):
                self.agent.update(int(self.BATCH_SIZE * k / 2))
        self.latest_T, self.previous_T = now_T, _rescaled(action_T, seen_T.cpu())
        super().close_step(means_T, seen_T)

    def close_epoch(self, means_T: Tensor, seen_T: Tensor) -> None:
        """Takes the base loss of each task once, from the second epoch on."""
        if self.epoch_count >= self.BASE_EPOCH:
            self.base_T = torch.where(self.base_T.isnan() & seen_T, means_T, self.base_T)

    def get_extra_state(self) -> dict[str, Any]:
        """Counts, random state, pending actions and the agent, for ``state_dict()``."""
        return dict(
            super().get_extra_state(),
            total_steps=self.total_steps,
            generator=self.generator.get_state(),
            undrawn=None if self.action_T is None else self._undrawn,
            action_T=self.action_T,
            previous_T=self.previous_T,
            agent=None if self.agent is None else self.agent.state_dict(),
        )

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`get_extra_state` returned."""
        super().set_extra_state(state)
        self.total_steps = state['total_steps']
        self.generator.set_state(state['generator'].cpu())
        self.action_T, self.previous_T = (
            None if action is None else action.cpu() for action in (state['action_T'], state['previous_T'])
        )
        undrawn = state.get('undrawn')
        self._undrawn = None if undrawn is None else undrawn.cpu()
        if state['agent'] is not None:
            if self.agent is None:  # without the buffers of T numbers, which call setup
                raise ValueError('IGBv2: the state has an agent but no window_sum_T; load a whole checkpoint')
            self.agent.load_state_dict(state['agent'])


def _rescaled(action_T: Tensor, mask_T: Tensor) -> Tensor:
    """The weights of the tasks in the mask, scaled to sum to their number; 0 elsewhere, (T,)."""
    kept_T = torch.where(mask_T, action_T, 0)
    return kept_T * (mask_T.sum() / kept_T.sum().clamp(min=torch.finfo(kept_T.dtype).tiny))
