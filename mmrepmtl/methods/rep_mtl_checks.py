"""Checks of the arguments of RepMTL, and its warnings, each given once.

Dimensions: L levels, T tasks.
"""

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence

from torch import Tensor

#: Below this entropy / ln T one task owns almost every position.
_COLLAPSED = 0.1
#: With fewer samples than this, BatchNorm at the entry of a head makes anchors rounding noise (1) or opposite (2).
_FEW_SAMPLES = 4
#: A task with a smaller average share is warned of; with more than 11 tasks, one with less than a third of its part.
_SMALL_SHARE, _SMALL_PART = 0.03, 1 / 3
#: Calls over which the shares are averaged before anything is said.
_SHARE_HORIZON = 20


def check_arguments(
    choices: Mapping[str, tuple[str | None, Collection[str | None]]], numbers: Mapping[str, tuple[float, float]]
) -> None:
    """Raises ValueError for an argument out of its range.

    Args:
        choices: {argument: (value, allowed values)}.
        numbers: {argument: (value, least value)}.
    """
    for argument, (choice, allowed) in choices.items():
        if choice not in allowed:
            raise ValueError(f'RepMTL: {argument} must be one of {allowed}, got {choice!r}')
    for argument, (number, least) in numbers.items():
        if not number >= least:
            raise ValueError(f'RepMTL: {argument} must be at least {least}, got {number!r}')


class Watch:
    """Warns of whatever makes the penalties useless or harmful.

    Attributes:
        warn: Takes the text of a warning; None: ``warnings.warn``.
    """

    def __init__(self) -> None:
        self.warn: Callable[[str], None] | None = None
        self._unseen: tuple[list[str], Tensor, Tensor, list[str]] | None = None
        self._shares: dict[str, tuple[float, int]] = {}
        self._meets: bool | None = None
        self._warned: set[str] = set()

    def note_owners(
        self, tasks: Sequence[str], entropy: Tensor, shares_LT: Tensor, remedies: Sequence[str] = ()
    ) -> None:
        """Takes what TSR found in a call, which :meth:`look` judges.

        Args:
            tasks: The T tasks of the call, at least 2.
            entropy: TSR / ln T.
            shares_LT: Mean ownership of each task at each of the L levels.
            remedies: Settings that help a task with a small share.
        """
        self._unseen = list(tasks), entropy, shares_LT, list(remedies)
        # Elsewhere looking at it now would wait for the accelerator; the next call or `diagnostics` does.
        if entropy.device.type == 'cpu':
            self.look()

    def look(self) -> None:
        """Warns where TSR of the last call has nothing to act on, one task owns almost all, or one almost nothing."""
        if self._unseen is None:
            return
        (tasks, entropy, shares_LT, remedies), self._unseen = self._unseen, None
        rows = shares_LT.tolist()
        self._look_at_readers(tasks, rows)
        if self._meets is False:
            return
        share_T = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        # Nobody owns anything if every saliency is zero, which is no collapse.
        self._look_at_entropy(float(entropy) if any(share_T) else 1.0)
        self._look_at_shares(dict(zip(tasks, share_T, strict=True)), remedies)

    def _look_at_readers(self, tasks: Sequence[str], rows: Sequence[Sequence[float]]) -> None:
        """Warns where no level has two readers; the first call that can tell decides."""
        readers = [[task for task, share in zip(tasks, row, strict=True) if share > 0] for row in rows]
        if self._meets or len(set(sum(readers, []))) < 2:
            return
        self._meets = any(len(names) > 1 for names in readers)
        if not self._meets:
            levels = '; '.join(f'level {i} is read by {names or "nobody"}' for i, names in enumerate(readers))
            self._warn(
                'readers',
                f'TSR is 0 and has no effect: no map of the shared representation is read by two tasks ({levels}). '
                'Name a `shared` module whose output they all read (a neck, or one level), have the heads read the '
                'same level, or set lambda_tsr=0',
            )

    def _look_at_entropy(self, entropy: float) -> None:
        """Warns of a collapse, once until it recovers."""
        if entropy >= _COLLAPSED:
            self._warned.discard('collapse')
        else:
            self._warn(
                'collapse',
                f'entropy / ln T of the task saliency collapsed to {entropy:.3f}: one task owns '
                'almost every position. Lower lambda_tsr, or use warmup_iters, saliency_floor or '
                "through='representation'",
            )

    def _look_at_shares(self, shares: Mapping[str, float], remedies: Sequence[str]) -> None:
        """Warns of a task whose average share is small, once."""
        if not any(shares.values()):
            return
        for task, share in shares.items():
            average, count = self._shares.get(task, (0.0, 0))
            count += 1
            average += (share - average) / min(count, _SHARE_HORIZON)
            self._shares[task] = average, count
            if count >= _SHARE_HORIZON and average < min(_SMALL_SHARE, _SMALL_PART / len(shares)):
                self._warn(
                    f'share of {task}',
                    f'task {task!r} owns {average:.1%} of the saliency of the shared representation, on the average of '
                    f'{_SHARE_HORIZON} calls, and TSR makes that less: the encoder may stop to serve it. Use '
                    f'{", ".join(remedies)}, or bring its loss nearer to the others (a standardised target)',
                )

    def look_at_samples(self, own: int, everywhere: int, gathered: bool) -> None:
        """Warns of too few samples for CSA.

        Args:
            own: Samples of this process.
            everywhere: Samples of all processes.
            gathered: Whether CSA contrasts with those of all processes.
        """
        if (everywhere if gathered else own) == 1:
            self._warn('single', 'CSA has no negatives in a batch of one sample and is 0')
        elif own < _FEW_SAMPLES:
            self._warn(
                'few',
                f'CSA on {own} samples per process: heads that begin with convolution + BatchNorm make '
                f'its anchors degenerate below {_FEW_SAMPLES} samples per BatchNorm batch',
            )

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            if self.warn is None:
                warnings.warn(f'RepMTL: {message}', stacklevel=2)
            else:
                self.warn(f'RepMTL: {message}')
