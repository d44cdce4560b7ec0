from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmrepmtl.registry import MODELS
from mmrepmtl.structures import MultiTaskDataSample


class TaskHead(nn.Module):
    """Base of task heads: a decoder with the loss and the prediction of one task.

    Losses are returned as (numerator, count), so that the model can normalise them over all ranks at once. They are
    computed in float32 (float64 stays), also under autocast, and are twice differentiable.

    Args:
        decoder: Config of the decoder, or the module itself.
        out_channels: Channels of the raw output.
        in_channels: Channels of the representation or of each of its levels; filled in by the model.
        target: Name of the ground truth; None takes the task's own name.
        loss_weight: Factor of the loss values.
    """

    #: Name of the kind of target that it learns, see :mod:`mmrepmtl.structures.kinds`; None says nothing.
    kind: ClassVar[str | None] = None

    def __init__(
        self,
        decoder: dict[str, Any] | nn.Module,
        out_channels: int,
        in_channels: int | Sequence[int] | None = None,
        target: str | None = None,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        #: Name of the task, set by the model that holds the head.
        self.task: str | None = None
        self.target = target
        self.loss_weight = loss_weight
        self.decoder = decoder if isinstance(decoder, nn.Module) else _build_decoder(decoder, in_channels, out_channels)

    def forward(self, features: Tensor | Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Computes the raw output.

        Args:
            features: The shared representation.
            size: (H, W) of the network's input, which dense outputs are resized to.
        """
        return full_precision(self.decoder(features))

    def labelled(self, data_samples: Sequence[MultiTaskDataSample]) -> list[bool]:
        """Whether each sample has this task's ground truth."""
        return [self.target_name in sample.targets for sample in data_samples]

    def loss_terms(
        self, output: Tensor, data_samples: Sequence[MultiTaskDataSample]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Sums the losses over the labelled samples.

        Args:
            output: The raw output for the batch.
            data_samples: One per row of ``output``.

        Returns:
            {term: (numerator, count)}, scalars. Without any label the numerator is a zero that is connected to the
            graph and the count is 0.

        Raises:
            ValueError: A target's shape is not the one that the output asks for.
        """
        with torch.autocast(output.device.type, enabled=False):
            output = full_precision(output)
            return self.compute_terms(output, self._stack_targets(output, data_samples))

    def compute_terms(self, output: Tensor, target: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Sums the losses of ``output`` against the stacked ``target``, void where it is :meth:`void_target`."""
        raise NotImplementedError

    def void_target(self, output: Tensor) -> Tensor:
        """The target of one unlabelled sample: the right shape and type, void everywhere."""
        raise NotImplementedError

    def predict(self, output: Tensor, data_samples: Sequence[MultiTaskDataSample]) -> list[Tensor]:
        """Turns the raw output into one prediction per sample, in the format of :class:`MultiTaskDataSample`."""
        raise NotImplementedError

    @property
    def target_name(self) -> str:
        """Name of the ground truth; a head without ``target=`` has one only in a model, which names its task."""
        name = self.target or self.task
        assert name is not None, 'a head outside a model needs target='
        return name

    def _stack_targets(self, output: Tensor, data_samples: Sequence[MultiTaskDataSample]) -> Tensor:
        void = self.void_target(output)
        targets = [sample.targets.get(self.target_name, void) for sample in data_samples]
        for sample, target in zip(data_samples, targets, strict=True):
            if target.shape != void.shape:
                raise ValueError(
                    f'Task {self.task!r}: the target {self.target_name!r} of {sample.get("img_path", "a sample")} has '
                    f'shape {tuple(target.shape)}, expected {tuple(void.shape)}; resize it with the image in the '
                    'training pipeline (padding to the batch is done by the data preprocessor)'
                )
        return torch.stack([target.to(void) for target in targets])


def full_precision(tensor: Tensor) -> Tensor:
    """Casts half precision to float32; float32 and float64 stay as they are."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def _build_decoder(config: dict[str, Any], in_channels: int | Sequence[int] | None, out_channels: int) -> nn.Module:
    channels = {} if in_channels is None else dict(in_channels=in_channels)
    return MODELS.build(config, default_args=dict(out_channels=out_channels, **channels))
