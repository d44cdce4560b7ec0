"""One forward pass of a trained model for its losses and its Z, as training makes it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mmrepmtl.engine.capture import SharedCapture
from mmrepmtl.engine.checks import find_shared
from mmrepmtl.engine.task_losses import TaskLosses, agreed_losses, collect, resolve_prefixes
from mmrepmtl.structures import MultiTaskDataSample


def shared_forward(
    model: nn.Module,
    inputs: Sequence[Tensor],
    data_samples: Sequence[MultiTaskDataSample],
    shared: str,
    training: bool = False,
    calls: Sequence[str] = (),
) -> tuple[TaskLosses, SharedCapture, tuple[int, int]]:
    """Computes the losses of a batch and captures Z; the model is afterwards as it was.

    Args:
        model: One that ``MultiTaskOptimWrapper`` could train and that names its ``tasks``.
        inputs: The images, (3, h, w) in [0, 1].
        data_samples: With the targets.
        shared: Name of the module whose output is Z.
        training: BatchNorm with the statistics of the batch, and dropout (the same at each call); else evaluation mode.
        calls: The tasks, where each has a call of the shared module of its own.

    Returns:
        The losses, the views of Z, and the size (H, W) of the padded images.

    Raises:
        ValueError: The shared module is unknown, or was not called; a batch is too small for BatchNorm in training.
    """
    batch = dict(inputs=list(inputs), data_samples=[sample.clone() for sample in data_samples])
    capture = SharedCapture(shared, calls)
    # Running statistics move in training mode; these copies do, and the graph may keep them.
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()} if training else {}
    was_training = model.training
    model.train(training)
    hook = find_shared(model, shared).register_forward_hook(capture)
    try:
        # As in training, where targets are padded with their images.
        batch = model.get_submodule('data_preprocessor')(batch, training=True)
        with torch.enable_grad(), torch.random.fork_rng(enabled=training):
            if training:
                torch.manual_seed(0)
            try:
                outputs = functional_call(model, buffers, (), dict(batch, mode='loss'))
            except ValueError as error:
                if 'more than 1 value per channel' not in str(error):
                    raise
                raise ValueError(
                    f'BatchNorm has no statistics of a batch of {len(inputs)} in training mode; use larger batches, or '
                    'evaluation mode'
                ) from error
    finally:
        hook.remove()
        model.train(was_training)
    if not capture.fired:
        raise ValueError(f'the module {shared!r} was not called, so there is no Z to differentiate by')
    capture.check_unmodified()
    height, width = batch['inputs'].shape[-2:]
    return collect(outputs, resolve_prefixes(None, model), 'add', agreed_losses()), capture, (int(height), int(width))
