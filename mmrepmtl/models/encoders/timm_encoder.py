import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from mmrepmtl.registry import MODELS

from .checkpoint import read_state_dict


@MODELS.register_module()
class TimmEncoder(nn.Module):
    """Any timm model as the shared encoder; its feature maps are NCHW, whatever the layout inside timm.

    ``channels`` (also ``num_features``) and ``reductions`` describe the returned levels, shallow to deep.

    Args:
        name: Model name as in ``timm.list_models()``, e.g. ``'resnet50'`` or ``'resnet50.tv_in1k'``.
        output_stride: Stride of the deepest map (8, 16 or 32), reached by dilation; None keeps the model's own.
            A ResNet-50 at 8 is the paper's encoder: layer3 has dilation 1 then 2, layer4 2 then 4.
        out_indices: The levels that are returned, timm's numbering; negative ones count from the deepest.
        in_chans: Number of image channels.
        pretrained: Whether to download timm's weights. Off, so that nothing needs a network by default.
        checkpoint: Local file of weights of this timm model (torchvision's ResNet weights fit, too). Loaded without
            running code from it; its classifier is left out. Excludes ``pretrained``.
        model_args: Further keyword arguments of the timm model, e.g. ``dict(drop_path_rate=0.1)`` or
            ``dict(img_size=(288, 384))``.

    Raises:
        ValueError: timm has no such model, the model has no such stride or level, or the checkpoint does not fit it.
    """

    def __init__(self, name: str, output_stride: int | None = None, out_indices: Sequence[int] = (-1, ),
                 in_chans: int = 3, pretrained: bool = False, checkpoint: str | Path | None = None,
                 model_args: dict[str, Any] | None = None) -> None:
        super().__init__()
        if pretrained and checkpoint is not None:
            raise ValueError('TimmEncoder: give either pretrained=True (timm downloads its weights) or checkpoint='
                             f'{str(checkpoint)!r}, not both')
        arguments = dict(features_only=True, out_indices=tuple(out_indices), in_chans=in_chans, **(model_args or {}))
        if output_stride is not None:
            arguments['output_stride'] = output_stride
        if checkpoint is not None:
            self.model = _create_from_checkpoint(name, Path(checkpoint), arguments)
        else:
            self.model = _create(name, pretrained=pretrained, **arguments)
        self.channels: list[int] = list(self.model.feature_info.channels())
        self.reductions: list[int] = list(self.model.feature_info.reduction())
        if output_stride is not None and self.reductions[-1] > output_stride:
            raise ValueError(f'TimmEncoder: {name!r} returns stride {self.reductions[-1]} although '
                             f'output_stride={output_stride}; this model cannot be dilated')
        # An enumeration over str, absent from the feature classes of a few families.
        self._channels_last = getattr(self.model, 'output_fmt', 'NCHW') == 'NHWC'

    @property
    def num_features(self) -> list[int]:
        """Channels of the returned levels."""
        return self.channels

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Computes the feature maps.

        Args:
            images: (B, in_chans, H, W).

        Returns:
            (B, C, H / reduction, W / reduction) where one level was asked for, else a tuple of such maps.
        """
        levels = self.model(images)
        if self._channels_last:
            levels = [level.permute(0, 3, 1, 2) for level in levels]
        return levels[0] if len(levels) == 1 else tuple(levels)


def _create(name: str, **arguments: Any) -> nn.Module:
    hub = ':' in name
    if not hub and not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise ValueError(f'timm {timm.__version__} has no model {name!r}' +
                         (f'; did you mean one of {close}?' if close else '; timm.list_models() lists them'))
    # timm reports what a model does not support in as many ways as it has models: assertions, lookups, arguments.
    try:
        return timm.create_model(name, **arguments)
    except (AssertionError, IndexError, NotImplementedError, TypeError) as error:
        settings = {key: value for key, value in arguments.items() if not key.startswith('pretrained')}
        raise ValueError(f'timm cannot build {name!r} with {settings}: {type(error).__name__}: {error}') from error


def _create_from_checkpoint(name: str, path: Path, arguments: dict[str, Any]) -> nn.Module:
    """Lets timm convert the weights (layout, image size, channels) and load them strictly, without the classifier."""
    weights = read_state_dict(path)
    for layer in _classifier_names(name):
        weights = {key: value for key, value in weights.items() if not key.startswith(f'{layer}.')}
    overlay = dict(state_dict=weights, num_classes=0, classifier=None)
    try:
        model = _create(name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay, **arguments)
    except (RuntimeError, KeyError) as error:
        raise ValueError(f'Checkpoint {path} does not fit the timm model {name!r}: {error}') from error
    # Families with a feature class of their own (EfficientNet, MobileNetV3, HRNet) are loaded leniently by timm.
    if not type(model).__module__.startswith('timm.models._features'):
        missing = [key for key in model.state_dict() if key not in weights and not key.endswith('num_batches_tracked')]
        if missing:
            raise ValueError(f'Checkpoint {path} does not fit the timm model {name!r}: missing keys {missing}')
    return model


def _classifier_names(name: str) -> tuple[str, ...]:
    config = timm.get_pretrained_cfg(name)
    names = config.classifier if config is not None else None
    return (names, ) if isinstance(names, str) else tuple(names or ())
