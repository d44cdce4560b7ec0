"""Parameters and floating-point operations of encoder, neck and heads, and of a training step of each method.

One multiply-add is two operations. Counted are convolutions, matrix products and attention, as
:mod:`torch.utils.flop_counter` does; normalisation, activations and interpolation are not.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmrepmtl.methods.aggregation import Aggregator
from mmrepmtl.methods.regularizer import Regularizer
from mmrepmtl.methods.rep_mtl import RepMTL
from mmrepmtl.methods.weighting import Weighting
from mmrepmtl.models import MultiTaskModel
from mmrepmtl.models.necks import TaskSaliencyDecoder

#: Name of the neck's row where it is a task saliency decoder.
TSD = 'TSD'


@dataclass(frozen=True)
class Part:
    """The cost of a part of the model.

    Attributes:
        name: 'encoder', 'neck', 'TSD' or the task of a head.
        parameters: Their number.
        flops: Operations of one forward pass on one image.
        shared: Whether it lies before Z: one part of F_e, else of F_h.
    """

    name: str
    parameters: int
    flops: int
    shared: bool


def model_cost(model: nn.Module, size: Sequence[int], shared: str = 'encoder') -> list[Part]:
    """Counts the parts of a model, on one image, in evaluation mode.

    Args:
        model: A ``MultiTaskModel``; it stays as it is.
        size: (height, width) of the image in pixels.
        shared: The module whose output is Z, 'encoder' or 'neck'.

    Raises:
        ValueError: Another kind of model, or one that cannot run on an image of this size.
    """
    if not isinstance(model, MultiTaskModel):
        raise ValueError(
            f'cost: only encoder, neck and heads of a MultiTaskModel are counted, the config has {type(model).__name__}'
        )
    model = copy.deepcopy(model).cpu().eval()
    encoder, neck = model.get_submodule('encoder'), dict(model.named_children()).get('neck')
    heads = dict(model.get_submodule('heads').named_children())
    image = torch.zeros(1, 3, *size)
    try:
        features, flops = _count(encoder, image)
        parts = [Part('encoder', _parameters(encoder), flops, True)]
        if neck is not None:
            features, flops = _count(neck, features)
            name = TSD if isinstance(neck, TaskSaliencyDecoder) else 'neck'
            parts.append(Part(name, _parameters(neck), flops, shared == 'neck'))
        for task, head in heads.items():
            own = features[task] if isinstance(features, Mapping) and task in features else features
            flops = _count(head, own, (int(size[0]), int(size[1])))[1]
            parts.append(Part(task, _parameters(head), flops, False))
    except RuntimeError as error:
        raise ValueError(f'cost: the model does not run on an image of {size[0]} x {size[1]}: {error}') from error
    return parts


@torch.no_grad()
def _count(module: nn.Module, *inputs: Any) -> tuple[Any, int]:
    """The output of a module and the operations that it took."""
    with FlopCounterMode(display=False) as counter:
        output: Tensor | Any = module(*inputs)
    return output, counter.get_total_flops()


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


class Passes(NamedTuple):
    """The counted cost of a training step: so many F_h and F_e, forward passes of all heads and of the encoder."""

    heads: int
    encoder: int

    def __str__(self) -> str:
        return f'{self.heads} F_h + {self.encoder} F_e'


def count_passes(
    weighting: Weighting | None,
    aggregator: Aggregator | None,
    regularizers: Sequence[Regularizer],
    num_tasks: int,
    num_batches: int = 1,
    own_samples: bool = False,
) -> Passes:
    """Counts a training step in forward passes; a backward is two.

    =========================================================  =========================
    loss weighting, gradients combined at Z                    3 F_h + 3 F_e
    gradients combined at the parameters, T tasks              3 F_h + (1 + 2 T) F_e
    Rep-MTL                                                    3 F_h more
    Rep-MTL with an aggregator: a backward of the penalty      5 F_h + 2 F_e more
    Rep-MTL through the representation                         4 F_h more
    Rep-MTL through the representation, with an aggregator     4 F_h + 2 F_e more
    a second look at the losses after the step                 F_h + F_e more
    n micro-batches per step                                   n times all that
    =========================================================  =========================

    Args:
        weighting: The loss weighting; None: none, as mmengine trains.
        aggregator: The gradient aggregator, or None.
        regularizers: Those of the method.
        num_tasks: T.
        num_batches: Micro-batches per step.
        own_samples: Each task has samples of its own and runs the encoder alone (``encoder_forward='per_task'``): its
            gradient then passes through the encoder on its own samples only.

    Raises:
        ValueError: A regulariser whose cost is not known.
    """
    heads, encoder = 3, 3
    if aggregator is not None and aggregator.level == 'parameter' and not own_samples:
        encoder = 1 + 2 * num_tasks
    for regularizer in regularizers:
        if not isinstance(regularizer, RepMTL) or regularizer.interval != 1:
            raise ValueError(f'the cost of {regularizer} is not known, only that of RepMTL with interval=1')
        if regularizer.through == 'all':
            heads += 3
            if aggregator is not None:
                heads += 2
        else:
            heads += 4
        if aggregator is not None:
            encoder += 2
    if weighting is not None and weighting.second_look:
        heads, encoder = heads + 1, encoder + 1
    return Passes(heads * num_batches, encoder * num_batches)


@dataclass(frozen=True)
class StepCost:
    """Methods whose step has the same counted cost.

    Attributes:
        methods: Their names.
        passes: The count, as text.
        flops: Operations of a training step for one image (one image of each task, where each has samples of its own).
        ratio: That over the cost of equal weighting.
    """

    methods: tuple[str, ...]
    passes: str
    flops: int
    ratio: float


def step_costs(
    parts: Sequence[Part], passes: Mapping[str, Passes], single_tasks: str | None = None, own_samples: bool = False
) -> list[StepCost]:
    """The cost of a training step of each method, cheapest first; methods of the same cost together.

    Args:
        parts: As :func:`model_cost` returns them.
        passes: {method: as :func:`count_passes` returns it}.
        single_tasks: Name of the single-task baseline, which trains T models, each with an encoder of its own.
        own_samples: Each task has samples of its own, so the encoder runs on T images where it else runs on one.
    """
    tasks = len([part for part in parts if not part.shared and part.name not in (TSD, 'neck')])
    images = tasks if own_samples else 1
    encoder = images * sum(part.flops for part in parts if part.shared)
    heads = sum(part.flops for part in parts if not part.shared)
    equal = 3 * heads + 3 * encoder
    groups: dict[tuple[str, int], list[str]] = {}
    for method, count in passes.items():
        groups.setdefault((str(count), count.heads * heads + count.encoder * encoder), []).append(method)
    if single_tasks is not None:
        factor = 1 if own_samples else tasks
        groups.setdefault((str(Passes(3, 3 * factor)), 3 * heads + 3 * factor * encoder), []).append(single_tasks)
    found = [StepCost(tuple(names), text, flops, flops / equal) for (text, flops), names in groups.items()]
    return sorted(found, key=lambda cost: (cost.flops, cost.passes))
