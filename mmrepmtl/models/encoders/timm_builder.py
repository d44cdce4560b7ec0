"""Building timm models: clear errors for what timm does not have, and weights from local files."""

import difflib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models._features import FeatureGetterNet
from torch import Tensor

from mmrepmtl.utils.checkpoint import read_state_dict

#: Weights of JAX models, which timm reads by NumPy, without pickles.
_ARRAY_FILES = ('.npz', '.npy')


class TokenNet(FeatureGetterNet):
    """A vision transformer that returns the tokens of its blocks, the prefix tokens (class, registers) first.

    Attributes:
        num_prefix_tokens: Number of tokens before those of the patches.
        image_size, grid: (H, W) of the images and of the patches.

    Raises:
        ValueError: The model has no tokens, or no fixed grid of them.
    """

    model: Any  # timm's own

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        getter = getattr(model, 'forward_intermediates', None)
        patches: Any = getattr(model, 'patch_embed', None)
        if getter is None or 'return_prefix_tokens' not in inspect.signature(getter).parameters:
            raise ValueError(
                f"TimmEncoder: layout='NLC' needs a vision transformer; {type(model).__name__} has no tokens"
            )
        if getattr(patches, 'img_size', None) is None or getattr(patches, 'grid_size', None) is None:
            raise ValueError(
                f"TimmEncoder: layout='NLC' needs a fixed image size, which {type(model).__name__} does not have"
            )
        super().__init__(model, *args, **kwargs)
        self.num_prefix_tokens = int(model.num_prefix_tokens)
        self.image_size, self.grid = tuple(patches.img_size), tuple(patches.grid_size)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps (B, C, H, W) to one (B, prefix tokens + patches, channels) per level.

        Raises:
            ValueError: Images of another size: tokens do not tell their grid.
        """
        if tuple(images.shape[-2:]) != self.image_size:
            raise ValueError(
                f"TimmEncoder: layout='NLC' takes images of {self.image_size} only, got "
                f'{tuple(images.shape[-2:])}; set model_args=dict(img_size=...)'
            )
        levels = self.model.forward_intermediates(
            images,
            indices=self.out_indices,
            return_prefix_tokens=True,
            norm=self.norm,
            output_fmt='NLC',
            intermediates_only=True,
        )
        # Without prefix tokens timm returns the patches alone.
        return [level if isinstance(level, Tensor) else torch.cat([level[1], level[0]], dim=1) for level in levels]


def create(name: str, **arguments: Any) -> Any:
    """``timm.create_model`` with a ValueError that says what is wrong."""
    hub = ':' in name
    if not hub and not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f'; did you mean one of {close}?' if close else '; timm.list_models() lists them'
        raise ValueError(f'timm {timm.__version__} has no model {name!r}{hint}')
    arguments, weights = _read_files(arguments)
    # timm reports what a model does not support in as many ways as it has models: assertions, lookups, arguments.
    try:
        model = timm.create_model(name, **arguments)
    except (AssertionError, IndexError, NotImplementedError, TypeError) as error:
        hidden = ('pretrained', 'feature_cls')
        settings = {key: value for key, value in arguments.items() if not key.startswith(hidden)}
        raise ValueError(f'timm cannot build {name!r} with {settings}: {type(error).__name__}: {error}') from error
    if weights is not None:
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            reason = ' '.join(str(error).split())
            raise ValueError(f'checkpoint_path does not fit the timm model {name!r}: {reason}') from error
    return model


def _read_files(arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor] | None]:
    """Reads the files that timm would read itself, which checks them less and knows no ``--trust-checkpoint``.

    Returns:
        The arguments without files (``pretrained_cfg`` then holds the weights), and the weights of ``checkpoint_path``.
    """
    arguments = dict(arguments)
    for key in ('pretrained_cfg', 'pretrained_cfg_overlay'):
        settings: Any = arguments.get(key)
        file = settings.get('file') if isinstance(settings, Mapping) else None
        if file and Path(file).suffix not in _ARRAY_FILES:
            arguments[key] = {**settings, 'file': None, 'state_dict': read_state_dict(file)}
    file = arguments.get('checkpoint_path')
    if not file or Path(file).suffix in _ARRAY_FILES:
        return arguments, None
    del arguments['checkpoint_path']
    return arguments, read_state_dict(file)


def create_from_checkpoint(name: str, path: Path, arguments: dict[str, Any]) -> Any:
    """A model with the weights of a local file, see :func:`create_from_weights`."""
    return create_from_weights(name, read_state_dict(path), path, arguments)


def create_from_weights(name: str, weights: dict[str, Tensor], path: Path, arguments: dict[str, Any]) -> Any:
    """Lets timm convert the weights (layout, image size, channels) and load them strictly, without the classifier.

    Args:
        name: timm's name of the model.
        weights: By timm's names.
        path: The file that they come from, for errors.
        arguments: Further ones of ``timm.create_model``.
    """
    for layer in _classifier_names(name):
        weights = {key: value for key, value in weights.items() if not key.startswith(f'{layer}.')}
    overlay = dict(state_dict=weights, num_classes=0, classifier=None)
    try:
        model = create(name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay, **arguments)
    except (RuntimeError, KeyError) as error:
        raise ValueError(f'Checkpoint {path} does not fit the timm model {name!r}: {error}') from error
    # Families with a feature class of their own (EfficientNet, MobileNetV3, HRNet) are loaded leniently by timm.
    if not (isinstance(model, TokenNet) or type(model).__module__.startswith('timm.models._features')):
        missing = [key for key in model.state_dict() if key not in weights and not key.endswith('num_batches_tracked')]
        if missing:
            raise ValueError(f'Checkpoint {path} does not fit the timm model {name!r}: missing keys {missing}')
    return model


def _classifier_names(name: str) -> tuple[str, ...]:
    config = timm.get_pretrained_cfg(name)
    names = config.classifier if config is not None else None
    return (names,) if isinstance(names, str) else tuple(names or ())
