"""Names for types that recur in the engine."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch.distributed
from torch import Tensor

#: A part of a checkpoint: plain data and tensors.
State: TypeAlias = dict[str, Any]
#: One gradient for each of some tensors; None for a tensor that the loss does not depend on.
Gradients: TypeAlias = Sequence[Tensor | None]
#: The shared representation Z: a tensor, its levels, or {task: tensor} for tasks with samples of their own.
Representation: TypeAlias = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
#: The processes of a collective; None is the default group. A string, because torch may be built without distributed.
ProcessGroup: TypeAlias = 'torch.distributed.ProcessGroup | None'
#: A batch of a data loader, as hooks get it.
Batch: TypeAlias = Mapping[str, Any] | Sequence[Any] | None
#: The results of one iteration, as hooks get them: the log's values in training, else the samples.
Outputs: TypeAlias = Mapping[str, Any] | Sequence[Any] | None
