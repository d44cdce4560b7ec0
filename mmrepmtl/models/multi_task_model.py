from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from mmrepmtl.registry import MODELS
from mmrepmtl.structures import MultiTaskDataSample

_Config = Mapping[str, Any] | nn.Module


@MODELS.register_module()
class MultiTaskModel(BaseModel):
    """A shared encoder, an optional neck and one head per task.

    The output of ``encoder`` (or of ``neck``, where there is one) is the shared representation Z. The optim wrapper
    captures it as the output of the module that it is told by name: ``shared='encoder'`` or ``shared='neck'``.

    Args:
        encoder: Config of a module, or the module, that maps images to a feature map or a tuple of them and whose
            ``channels`` lists their channels.
        heads: {task: config of its head, or the head}, in the order of the tasks. Decoders get their ``in_channels``
            from the model.
        neck: As ``encoder``, from the encoder's output to Z; its ``in_channels`` come from the model.
        data_preprocessor: Config or module; None for a plain :class:`MultiTaskDataPreprocessor`.
        init_cfg: Weight initialisation of mmengine, None keeps what the modules did when they were built.

    Raises:
        ValueError: There is no task, a task has a name that cannot be used, or the encoder or neck has no ``channels``.
    """

    def __init__(self, encoder: _Config, heads: Mapping[str, _Config], neck: _Config | None = None,
                 data_preprocessor: _Config | None = None, init_cfg: dict | list | None = None) -> None:
        if not heads:
            raise ValueError('MultiTaskModel: heads is empty; give one head per task')
        for task in heads:
            check_task_name(task)
        # BaseModel would look it up in mmengine's own registry, which does not know ours. Defaults name their scope:
        # the config's default scope may be another project's.
        super().__init__(_build(data_preprocessor or dict(type='mmrepmtl.MultiTaskDataPreprocessor')), init_cfg)
        self.encoder = _build(encoder)
        channels = _channels(self.encoder)
        self.neck = None if neck is None else _build(neck, in_channels=channels)
        if self.neck is not None:
            channels = _channels(self.neck)
        self.heads = nn.ModuleDict({task: _build(head, in_channels=channels) for task, head in heads.items()})
        for task, head in self.heads.items():
            head.task = task
            head.target = head.target or task

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in the order of the config."""
        return tuple(self.heads)

    def forward(self, inputs: Tensor, data_samples: Sequence[MultiTaskDataSample] | None = None,
                mode: str = 'tensor') -> dict[str, Tensor] | list[MultiTaskDataSample]:
        """Runs the network.

        Args:
            inputs: (B, 3, H, W), as the data preprocessor makes them.
            data_samples: One per image; needed for the losses.
            mode: ``'loss'``, ``'predict'`` or ``'tensor'``.

        Returns:
            ``'loss'``: see :meth:`loss`; ``'predict'``: see :meth:`predict`; ``'tensor'``: {task: raw output}.
        """
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        if mode == 'predict':
            return self.predict(inputs, data_samples)
        if mode == 'tensor':
            return self.raw_outputs(inputs)
        raise ValueError(f"MultiTaskModel: mode={mode!r} is unknown; use 'loss', 'predict' or 'tensor'")

    def represent(self, inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Computes the shared representation of the images (B, 3, H, W)."""
        features = self.encoder(inputs)
        return features if self.neck is None else self.neck(features)

    def raw_outputs(self, inputs: Tensor) -> dict[str, Tensor]:
        """Computes {task: raw output}; dense outputs are (B, C, H, W) at the size of ``inputs``."""
        features = self.represent(inputs)
        size = (inputs.shape[-2], inputs.shape[-1])
        return {task: head(features, size) for task, head in self.heads.items()}

    def loss(self, inputs: Tensor, data_samples: Sequence[MultiTaskDataSample] | None) -> dict[str, Tensor]:
        """Computes the losses, normalised over the labels of all ranks.

        All ranks have to call this together: their counts are added in one collective.

        Returns:
            ``'TASK.loss_TERM'``: scalar whose *mean over ranks* is the mean over all labels of the global batch, as is
            the mean of its gradients, which DistributedDataParallel takes. Without a label on this rank it is a zero
            that is connected to the graph.
            ``'TASK.labelled'``: 1 if any rank has a valid label of the task, else 0.
        """
        if data_samples is None:
            raise ValueError("MultiTaskModel: mode='loss' needs data_samples")
        outputs = self.raw_outputs(inputs)
        terms = {(task, term): value
                 for task, head in self.heads.items()
                 for term, value in head.loss_terms(outputs[task], data_samples).items()}
        counts, world_size = _sum_over_ranks([count for _, count in terms.values()])
        # Not numerator / max(count, tiny): 1 / tiny overflows, and 0 times infinity is NaN.
        scales = torch.where(counts > 0, world_size / counts, 0)
        losses: dict[str, Tensor] = {}
        labelled = {task: counts.new_zeros((), dtype=torch.float32) for task in self.tasks}
        for (task, term), count, scale in zip(terms, counts, scales, strict=True):
            numerator, _ = terms[task, term]
            losses[f'{task}.loss_{term}'] = self.heads[task].loss_weight * numerator * scale.to(numerator.dtype)
            labelled[task] = torch.maximum(labelled[task], (count > 0).float())
        return losses | {f'{task}.labelled': flag for task, flag in labelled.items()}

    def predict(self, inputs: Tensor,
                data_samples: Sequence[MultiTaskDataSample] | None = None) -> list[MultiTaskDataSample]:
        """Predicts all tasks.

        Returns:
            One new sample per image with the meta information and the ground truth of its data sample and the
            predictions, dense ones at their target's size (the unpadded image's where there is no target).
        """
        if data_samples is None:
            shape = (inputs.shape[-2], inputs.shape[-1])
            data_samples = [MultiTaskDataSample(metainfo=dict(img_shape=shape)) for _ in inputs]
        outputs = self.raw_outputs(inputs)
        results = [sample.new() for sample in data_samples]
        for result in results:
            result.set_data(dict(pred=BaseDataElement()))
        for task, head in self.heads.items():
            for result, prediction in zip(results, head.predict(outputs[task], data_samples), strict=True):
                result.set_prediction(task, prediction)
        return results


def check_task_name(task: str) -> None:
    """Refuses names that would be misread as a loss key, a metric key or an attribute.

    Raises:
        ValueError: With the name and the reason.
    """
    reason = None
    if not isinstance(task, str) or not task:
        reason = 'it must be a string that is not empty'
    elif '.' in task or '/' in task:
        reason = "'.' and '/' separate the parts of loss and metric names"
    elif 'loss' in task:
        reason = "mmengine adds up every logged value whose name contains 'loss'"
    elif hasattr(nn.ModuleDict(), task) or hasattr(BaseDataElement(), task):
        reason = 'it is an attribute of the containers of heads or of predictions'
    if reason is not None:
        raise ValueError(f'MultiTaskModel: the task name {task!r} cannot be used: {reason}; choose another one')


def _build(config: _Config, **defaults: Any) -> nn.Module:
    return config if isinstance(config, nn.Module) else MODELS.build(config, default_args=defaults)


def _channels(module: nn.Module) -> list[int]:
    channels = getattr(module, 'channels', None)
    if channels is None:
        raise ValueError(f'MultiTaskModel: {type(module).__name__} has no attribute `channels`, the list of the '
                         'channels of its outputs, which decoders are built for')
    return list(channels)


def _sum_over_ranks(counts: Sequence[Tensor]) -> tuple[Tensor, int]:
    """Adds up scalar counts over the ranks in one collective; returns the sums (n,) float64 and the world size."""
    total = torch.stack([count.detach().double() for count in counts])
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
        return total, torch.distributed.get_world_size()
    return total, 1
