from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmrepmtl.registry import MODELS

from .package_weights import PACKAGE, initial_weights_are_wanted, read_package_weights
from .recomputation import Recomputation
from .timm_builder import TokenNet, create, create_from_checkpoint, create_from_weights

LAYOUTS = ('NCHW', 'NHWC', 'NLC')


@MODELS.register_module()
class TimmEncoder(nn.Module):
    """Any timm model as the shared encoder; docs/encoders.md lists the tested ones.

    Its output has the ``layout`` that it was asked for, whatever the layout inside timm. ``channels`` (also
    ``num_features``) and ``reductions`` describe the returned levels, shallow to deep.

    Args:
        name: Model name as in ``timm.list_models()``, e.g. ``'resnet50'`` or ``'resnet50.tv_in1k'``.
        output_stride: Stride of the deepest map (8, 16 or 32), reached by dilation; None keeps the model's own.
            A ResNet-50 at 8 is the paper's encoder: layer3 has dilation 1 then 2, layer4 2 then 4.
        out_indices: The levels that are returned, timm's numbering; negative ones count from the deepest.
        in_chans: Number of image channels.
        pretrained: Whether to download timm's weights. Off, so that nothing needs a network by default. ``'package'``
            takes ImageNet weights from an installed package, also without a network (docs/encoders.md).
        checkpoint: Local file of weights of this timm model (torchvision's ResNet weights fit, too). Loaded without
            running code from it; its classifier is left out. Excludes ``pretrained``.
        model_args: Further keyword arguments of the timm model, e.g. ``dict(drop_path_rate=0.1)`` or
            ``dict(img_size=(288, 384))``.
        layout: ``'NCHW'``; ``'NHWC'`` (channels last, as Swin computes them); ``'NLC'``: the tokens of a vision
            transformer, class and register tokens first, for images of one size. With the last two, decoders need a
            :class:`ToMapNeck`, and ``RepMTL`` the same ``layout`` (and ``num_prefix_tokens``).
        grad_checkpointing: Whether to recompute activations in the backward pass, as timm places it: in stages of a
            ResNet, in blocks of most others. Same gradients, same running statistics of BatchNorm.
        channels_last: Whether maps lie in memory with the channels of a position together. The values are the same up
            to rounding; networks of depthwise convolutions are faster so on a CPU (docs/encoders.md).
        compile: Whether to compile the encoder; True, or arguments of ``torch.compile``. The names of its weights stay
            the same. Heads are differentiated twice by Rep-MTL and cannot be compiled. Switches torch's donated buffers
            off, which gradient methods cannot have.

    Attributes:
        num_prefix_tokens: Class and register tokens in the output; 0 unless ``layout='NLC'``.
        grid: (H, W) of the patches with ``layout='NLC'``, else None.

    Raises:
        ValueError: timm has no such model, the model has no such stride, level, layout or checkpointing, or the
            checkpoint does not fit it; no installed package has the weights that ``'package'`` asks for, or its file is
            another one than was tested; checkpointing with compile's backend ``'eager'``; in ``forward``, images that
            do not have the fixed size that ``'NLC'`` needs.
    """

    def __init__(
        self,
        name: str,
        output_stride: int | None = None,
        out_indices: Sequence[int] = (-1,),
        in_chans: int = 3,
        pretrained: bool | str = False,
        checkpoint: str | Path | None = None,
        model_args: dict[str, Any] | None = None,
        layout: str = 'NCHW',
        grad_checkpointing: bool = False,
        channels_last: bool = False,
        compile: bool | Mapping[str, Any] = False,
    ) -> None:
        super().__init__()
        if pretrained not in (False, True, PACKAGE):
            raise ValueError(
                'TimmEncoder: pretrained must be True (timm downloads its weights), False or '
                f'{PACKAGE!r} (those of an installed package), got {pretrained!r}'
            )
        if pretrained and checkpoint is not None:
            raise ValueError(
                f'TimmEncoder: give either pretrained={pretrained!r} or checkpoint={str(checkpoint)!r}, not both'
            )
        if not initial_weights_are_wanted():
            pretrained, checkpoint = False, None
        if layout not in LAYOUTS:
            raise ValueError(f'TimmEncoder: layout must be one of {LAYOUTS}, got {layout!r}')
        arguments = dict(features_only=True, out_indices=tuple(out_indices), in_chans=in_chans, **(model_args or {}))
        if output_stride is not None:
            arguments['output_stride'] = output_stride
        if layout == 'NLC':
            arguments['feature_cls'] = TokenNet
        if checkpoint is not None:
            self.model = create_from_checkpoint(name, Path(checkpoint), arguments)
        elif pretrained == PACKAGE:
            self.model = create_from_weights(name, *read_package_weights(name), arguments)
        else:
            self.model = create(name, pretrained=bool(pretrained), **arguments)
        if channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.channels: list[int] = list(self.model.feature_info.channels())
        self.reductions: list[int] = list(self.model.feature_info.reduction())
        if output_stride is not None and self.reductions[-1] > output_stride:
            raise ValueError(
                f'TimmEncoder: {name!r} returns stride {self.reductions[-1]} although '
                f'output_stride={output_stride}; this model cannot be dilated'
            )
        self.layout = layout
        self.num_prefix_tokens: int = getattr(self.model, 'num_prefix_tokens', 0) if layout == 'NLC' else 0
        self.grid: tuple[int, int] | None = self.model.grid if layout == 'NLC' else None
        # An enumeration over str, absent from the feature classes of a few families.
        self._channels_last = getattr(self.model, 'output_fmt', 'NCHW') == 'NHWC'
        self._recomputation = Recomputation(self.model) if grad_checkpointing else None
        if grad_checkpointing:
            _switch_on_checkpointing(self.model, name)
        self._compiled = bool(compile)
        options = dict(compile) if isinstance(compile, Mapping) else {}
        if grad_checkpointing and options.get('backend') == 'eager':
            raise ValueError(
                "TimmEncoder: compile's backend 'eager' repeats checkpointed layers with other random numbers and "
                "updates BatchNorm's statistics twice; use backend='aot_eager' or 'inductor', or no checkpointing"
            )
        if compile:
            self.model.compile(**options)

    @property
    def num_features(self) -> list[int]:
        """Channels of the returned levels."""
        return self.channels

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Computes the representation.

        Args:
            images: (B, in_chans, H, W).

        Returns:
            (B, C, H / reduction, W / reduction), (B, H / reduction, W / reduction, C) or (B, num_prefix_tokens + N, C),
            as ``layout`` says, where one level was asked for, else a tuple of such.
        """
        if self._compiled and getattr(torch._functorch.config, 'donated_buffer', False):
            # Gradient methods run a backward per task through one graph. torch looks at this in the backward too.
            torch._functorch.config.donated_buffer = False
        with nullcontext() if self._recomputation is None else self._recomputation.forward_pass():
            levels = self.model(images)
        levels = [self._arrange(level) for level in levels]
        return levels[0] if len(levels) == 1 else tuple(levels)

    def _arrange(self, level: Tensor) -> Tensor:
        """The level in ``layout``; a view."""
        if self.layout == 'NCHW' and self._channels_last:
            return level.permute(0, 3, 1, 2)
        if self.layout == 'NHWC' and not self._channels_last:
            return level.permute(0, 2, 3, 1)
        return level


def _switch_on_checkpointing(model: nn.Module, name: str) -> None:
    # Feature classes around a whole model leave the switch to that model.
    target: Any = model if hasattr(model, 'set_grad_checkpointing') else getattr(model, 'model', model)
    try:
        target.set_grad_checkpointing(True)
    except (AssertionError, AttributeError) as error:
        raise ValueError(f'TimmEncoder: timm has no activation checkpointing for {name!r}') from error
