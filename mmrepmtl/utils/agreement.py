"""Sums over ranks that cannot hang or mix up because the ranks bring different things."""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from mmrepmtl.methods.collectives import num_processes


class NamedSum:
    """Adds up named scalars over ranks in one collective, which also tells whether all ranks bring the same.

    A rank may bring something else than the others: a model leaves a loss out where it finds no label, or fails. A
    reduction of tensors of different lengths hangs, or adds up what does not belong together. Here its shape is fixed
    by what all ranks brought before, and its last element counts the ranks that bring something else. Names are
    exchanged only if there are any, and in the first call; all ranks then go on with the new names, or raise the same
    error.

    Args:
        owner: Who speaks in errors.
        what: Names the things in errors, plural: ``'losses'``.
        advice: A sentence that tells the user what to do if the ranks differ.
        group: Process group; None is the default group.

    Attributes:
        facts: {description: value} of what else has to be equal on all ranks; set before a call.
    """

    def __init__(self, owner: str, what: str, advice: str, group=None) -> None:
        self.owner, self.what, self.advice, self.group = owner, what, advice, group
        self.facts: dict[str, str] = {}
        self._agreed: tuple | None = None
        self._like: Tensor | None = None

    def __call__(self, values: Mapping[str, Tensor], error: ValueError | None = None) -> dict[str, Tensor]:
        """Returns {name: sum over ranks}, detached; all ranks have to call this together.

        Args:
            values: {name: scalar}, all of one dtype and device, in any order.
            error: Why this rank has no values. All ranks then raise it.

        Raises:
            ValueError: On all ranks, if one of them passes an error, or if names, dtype or :attr:`facts` differ.
        """
        if num_processes() == 1:
            if error is not None:
                raise error
            return {name: value.detach() for name, value in values.items()}
        own = None if error is not None else self._describe(values)
        if self._agreed is None:
            self._agreed = self._agree(own, error)
        total = self._reduce(values, own, self._agreed)
        if total[-1]:  # the same on all ranks
            self._agreed = self._agree(own, error)
            total = self._reduce(values, own, self._agreed)
        return dict(zip(self._agreed[0], total, strict=False))

    def _describe(self, values: Mapping[str, Tensor]) -> tuple:
        """Collects what has to be equal on all ranks: the names, and (description, value) of all else."""
        first = next(iter(values.values()))
        self._like = first.detach().new_empty(0)
        return tuple(sorted(values)), (('dtype', first.dtype), *self.facts.items())

    def _reduce(self, values: Mapping[str, Tensor], own: tuple | None, agreed: tuple) -> Tensor:
        names, facts = agreed
        assert self._like is not None  # a rank that has described nothing yet has not agreed either
        flat = self._like.new_zeros(len(names) + 1, dtype=dict(facts)['dtype'])
        if own == agreed:
            flat[:-1] = torch.stack([values[name].detach() for name in names])
        else:
            flat[-1] = 1
        dist.all_reduce(flat, group=self.group)
        return flat

    def _agree(self, own: tuple | None, error: ValueError | None) -> tuple:
        """Returns the description that all ranks share; ValueError on all of them if there is none."""
        reports: list = [None] * num_processes()
        dist.all_gather_object(reports, (own, None if error is None else str(error)), group=self.group)
        failed = {rank: text for rank, (_, text) in enumerate(reports) if text is not None}
        if failed:
            everywhere = len(failed) == len(reports) and len(set(failed.values())) == 1
            rank, text = next(iter(failed.items()))
            raise ValueError(text if everywhere else f'on rank {rank}: {text}') from error
        described = [report for report, _ in reports]
        if any(other != described[0] for other in described):
            raise ValueError(
                f'{self.owner}: the ranks bring different {self.what}: {differences(described)}. {self.advice}'
            )
        return described[0]


def differences(described: Sequence[tuple]) -> str:
    """Says which ranks lack which names, and which facts differ; ``described[rank]`` is (names, facts)."""
    parts = []
    everything = sorted(set().union(*(names for names, _ in described)))
    for name in everything:
        lacking = [rank for rank, (names, _) in enumerate(described) if name not in names]
        having = [rank for rank in range(len(described)) if rank not in lacking]
        if lacking:
            parts.append(f'{name!r} is on {ranks(having)} and not on {ranks(lacking)}')
    facts = [dict(found) for _, found in described]
    for key in dict.fromkeys(key for found in facts for key in found):
        by_value: dict[str, list[int]] = {}
        for rank, found in enumerate(facts):
            by_value.setdefault(str(found.get(key, 'nothing')), []).append(rank)
        if len(by_value) > 1:
            parts.append(f'{key}: ' + ', '.join(f'{value} on {ranks(where)}' for value, where in by_value.items()))
    return '; '.join(parts)


def ranks(numbers: Sequence[int]) -> str:
    """'rank 1', 'ranks 0, 2', or the first few of many."""
    listed = ', '.join(map(str, numbers[:8])) + (f' and {len(numbers) - 8} more' if len(numbers) > 8 else '')
    return f'rank{"" if len(numbers) == 1 else "s"} {listed}'
