from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapperDict
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from mmrepmtl.methods.collectives import num_processes
from mmrepmtl.registry import MODELS
from mmrepmtl.structures import MultiTaskDataSample
from mmrepmtl.utils.agreement import NamedSum

from .heads.base import TaskHead
from .necks.build import build_neck, check_layout

_Config = Mapping[str, Any] | nn.Module

ENCODER_FORWARDS = ('shared', 'per_task', 'concat')


@MODELS.register_module()
class MultiTaskModel(BaseModel):
    """A shared encoder, an optional neck and one head per task.

    The output of ``encoder`` (or of ``neck``, where there is one) is the shared representation Z. The optim wrapper
    captures it as the output of the module that it is told by name: ``shared='encoder'`` or ``shared='neck'``.

    ``encoder_forward`` says how training runs the encoder if each task has samples of its own:

    * ``'shared'``: once on the whole batch, and each head reads all of Z (a sample without its target adds nothing);
    * ``'per_task'``: once for each task, in their order, on the samples that have the task's target, so that BatchNorm
      takes its statistics from one domain at a time, as public code does;
    * ``'concat'``: once on the samples of all tasks in their order, of which each head reads its own, the rows
      ``task_slices[task]`` of Z. Faster, but BatchNorm mixes the domains.

    With ``'per_task'`` and ``'concat'``, each batch on each process must hold samples of every task
    (``DomainBatchSampler``), and a sample with the targets of several tasks goes through the encoder for each.
    Predictions are always of all tasks for all samples, in one forward pass.

    Args:
        encoder: Config of a module, or the module, that maps images to a feature map or a tuple of them and whose
            ``channels`` lists their channels.
        heads: {task: config of its head, or the head}, in the order of the tasks. Decoders get their ``in_channels``
            from the model.
        neck: As ``encoder``, from the encoder's output to what the heads read; its ``in_channels`` come from the model,
            as do ``tasks`` and the encoder's ``layout``, ``grid`` and ``num_prefix_tokens`` where it takes them. A neck
            that returns {task: features} gives each head its own.
        data_preprocessor: Config or module; None for a plain :class:`MultiTaskDataPreprocessor`.
        init_cfg: Weight initialisation of mmengine, None keeps what the modules did when they were built.
        encoder_forward: ``'shared'``, ``'per_task'`` or ``'concat'``.

    Attributes:
        task_slices: {task: its rows of Z} of the last forward pass of a training with ``'concat'``, else None.

    Raises:
        ValueError: There is no task, a task has a name that cannot be used, the encoder or neck has no ``channels``,
            ``encoder_forward`` is unknown; in training a batch lacks a task's samples, unless it is ``'shared'``.
    """

    def __init__(
        self,
        encoder: _Config,
        heads: Mapping[str, _Config],
        neck: _Config | None = None,
        data_preprocessor: _Config | None = None,
        init_cfg: dict | list | None = None,
        encoder_forward: str = 'shared',
    ) -> None:
        if not heads:
            raise ValueError('MultiTaskModel: heads is empty; give one head per task')
        if encoder_forward not in ENCODER_FORWARDS:
            raise ValueError(
                f'MultiTaskModel: encoder_forward={encoder_forward!r} is unknown; use one of '
                f'{", ".join(map(repr, ENCODER_FORWARDS))}'
            )
        for task in heads:
            check_task_name(task)
        # BaseModel would look it up in mmengine's own registry, which does not know ours. Defaults name their scope:
        # the config's default scope may be another project's.
        super().__init__(_build(data_preprocessor or dict(type='mmrepmtl.MultiTaskDataPreprocessor')), init_cfg)
        self.encoder = _build(encoder)
        channels = _channels(self.encoder)
        self.neck = None if neck is None else build_neck(neck, self.encoder, channels, tuple(heads))
        if self.neck is not None:
            channels = _channels(self.neck)
        self.heads: Mapping[str, TaskHead] = cast(
            Any, nn.ModuleDict({task: _build(head, in_channels=channels) for task, head in heads.items()})
        )
        for task, head in self.heads.items():
            head.task = task
            head.target = head.target or task
        check_layout(self.encoder, self.neck, self.heads)
        self.encoder_forward = encoder_forward
        self.task_slices: dict[str, slice] | None = None
        self._counts = NamedSum(
            'MultiTaskModel',
            'loss terms',
            'A head has to return the same terms for every batch; one without a label has the count 0',
        )

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in the order of the config."""
        return tuple(self.heads)

    def forward(
        self, inputs: Tensor, data_samples: Sequence[MultiTaskDataSample] | None = None, mode: str = 'tensor'
    ) -> dict[str, Tensor] | list[MultiTaskDataSample]:
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

    def train_step(self, data: Any, optim_wrapper: Any) -> dict[str, Tensor]:
        """One iteration, as mmengine has it.

        Raises:
            ValueError: For a plain ``OptimWrapperDict``, of which mmengine cannot know how it trains one model.
        """
        if type(optim_wrapper) is OptimWrapperDict:
            raise ValueError(
                f'MultiTaskModel: the optim wrappers {list(optim_wrapper.keys())} of an OptimWrapperDict cannot train '
                "one model together; put them into one MultiTaskOptimWrapper, constructor='SeparateOptimizers' "
                '(docs/engine.md, Separate optimizers), or write a train_step of your own'
            )
        return super().train_step(data, optim_wrapper)

    def represent(self, inputs: Tensor) -> Tensor | tuple[Tensor, ...] | dict[str, Any]:
        """Computes what the heads read, from the images (B, 3, H, W)."""
        features = self.encoder(inputs)
        return features if self.neck is None else self.neck(features)

    def raw_outputs(self, inputs: Tensor) -> dict[str, Tensor]:
        """Computes {task: raw output} in one forward pass; dense outputs are (B, C, H, W) at the size of ``inputs``."""
        self.task_slices = None
        features = self.represent(inputs)
        size = (inputs.shape[-2], inputs.shape[-1])
        return {task: head(_own(features, task), size) for task, head in self.heads.items()}

    def own_outputs(self, inputs: Tensor, rows: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
        """Computes {task: raw output} for each task's own samples, as ``encoder_forward`` says.

        Args:
            inputs: (B, 3, H, W).
            rows: {task: positions of its samples in the batch}, in the order of the tasks.
        """
        size = (inputs.shape[-2], inputs.shape[-1])
        if self.encoder_forward == 'per_task':
            return {
                task: self.heads[task](_own(self.represent(_select_rows(inputs, own)), task), size)
                for task, own in rows.items()
            }
        self.task_slices, start = {}, 0
        for task, own in rows.items():
            self.task_slices[task] = slice(start, start + len(own))
            start += len(own)
        features = self.represent(_select_rows(inputs, [row for own in rows.values() for row in own]))
        return {task: self.heads[task](_cut(_own(features, task), own), size) for task, own in self.task_slices.items()}

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
        rows: Mapping[str, Sequence[int]]
        if self.encoder_forward == 'shared':
            rows = dict.fromkeys(self.tasks, range(len(data_samples)))
            outputs = self.raw_outputs(inputs)
        else:
            rows = self._rows_of_tasks(data_samples)
            outputs = self.own_outputs(inputs, rows)
        try:
            terms = self._loss_terms(outputs, data_samples, rows)
        except ValueError as error:
            self._counts({}, error)  # raises it on all ranks
            raise
        local = {f'{task}.{term}': count.detach().double() for (task, term), (_, count) in terms.items()}
        total, world_size = self._counts(local), num_processes()
        counts = torch.stack([total[name] for name in local])
        # Not numerator / max(count, tiny): 1 / tiny overflows, and 0 times infinity is NaN.
        scales = torch.where(counts > 0, world_size / counts, 0)
        losses: dict[str, Tensor] = {}
        labelled = {task: counts.new_zeros((), dtype=torch.float32) for task in self.tasks}
        for (task, term), count, scale in zip(terms, counts, scales, strict=True):
            numerator, _ = terms[task, term]
            losses[f'{task}.loss_{term}'] = self.heads[task].loss_weight * numerator * scale.to(numerator.dtype)
            labelled[task] = torch.maximum(labelled[task], (count > 0).float())
        return losses | {f'{task}.labelled': flag for task, flag in labelled.items()}

    def _loss_terms(self, outputs, data_samples, rows) -> dict[tuple[str, str], tuple[Tensor, Tensor]]:
        return {
            (task, term): value
            for task, head in self.heads.items()
            for term, value in head.loss_terms(outputs[task], [data_samples[row] for row in rows[task]]).items()
        }

    def _rows_of_tasks(self, data_samples: Sequence[MultiTaskDataSample]) -> dict[str, list[int]]:
        rows = {
            task: [row for row, labelled in enumerate(head.labelled(data_samples)) if labelled]
            for task, head in self.heads.items()
        }
        missing = [task for task, own in rows.items() if not own]
        if missing:
            raise ValueError(
                f'MultiTaskModel: encoder_forward={self.encoder_forward!r} needs samples of every task in each batch, '
                f'but this one of {len(data_samples)} has none with the target of {", ".join(missing)}; draw batches '
                "with batch_sampler=dict(type='DomainBatchSampler')"
            )
        return rows

    def predict(
        self, inputs: Tensor, data_samples: Sequence[MultiTaskDataSample] | None = None
    ) -> list[MultiTaskDataSample]:
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
    elif task == 'avg':
        reason = 'it stands for the average over tasks in the names of metrics'
    if reason is not None:
        raise ValueError(f'MultiTaskModel: the task name {task!r} cannot be used: {reason}; choose another one')


def _build(config: _Config, **defaults: Any) -> nn.Module:
    return config if isinstance(config, nn.Module) else MODELS.build(config, default_args=defaults)


def _select_rows(inputs: Tensor, rows: Sequence[int]) -> Tensor:
    """The rows of a batch, without a copy where they follow each other."""
    start, stop = rows[0], rows[0] + len(rows)
    return inputs[start:stop] if list(rows) == list(range(start, stop)) else inputs[list(rows)]


def _own(features: Any, task: str) -> Any:
    """Returns the input of a task's head: the neck's output, or the task's own entry in it."""
    return features[task] if isinstance(features, Mapping) and task in features else features


def _cut(features: Tensor | Sequence[Tensor], rows: slice) -> Tensor | tuple[Tensor, ...]:
    """The rows of the representation, of each level where there are several."""
    return features[rows] if isinstance(features, Tensor) else tuple(level[rows] for level in features)


def _channels(module: nn.Module) -> list[int]:
    channels = getattr(module, 'channels', None)
    if channels is None:
        raise ValueError(
            f'MultiTaskModel: {type(module).__name__} has no attribute `channels`, the list of the '
            'channels of its outputs, which decoders are built for'
        )
    return list(channels)
