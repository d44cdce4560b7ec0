"""Any mmseg decode head as the decoder of a task; mmseg itself is imported when one is built."""

import inspect
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from mmengine.logging import print_log
from torch import Tensor, nn

from mmrepmtl.registry import MODELS
from mmrepmtl.utils.config_types import type_name
from mmrepmtl.utils.mmseg import import_mmseg

T = TypeVar('T')

#: {class: why a head of it cannot be a decoder}; docs/mmseg.md shows them.
REFUSED = {
    'DDRHead': 'it reads other features in training than in evaluation, which only its own backbone returns',
    'KernelUpdateHead': 'it is a part of IterativeDecodeHead',
    'Mask2FormerHead': 'it predicts sets of masks, which only its own matching loss can train',
    'MaskFormerHead': 'it predicts sets of masks, which only its own matching loss can train',
    'PIDHead': 'it reads other features in training than in evaluation, which only its own backbone returns',
    'PSAHead': 'the backward of its PSAMask is not differentiable, and torch would not say so: a part of the gradient '
    'of Rep-MTL would be missing',
    'PointHead': 'it classifies sampled points in training and refines a map in evaluation',
    'SideAdapterCLIPHead': 'it reads the images and embeddings of texts beside the features',
}

#: Which output is the prediction, for heads that return several.
_MAIN_OUTPUT = {'DAHead': 0, 'IterativeDecodeHead': -1}

#: Layers that only feed the other outputs: frozen, since nothing trains them and DDP would wait for their gradients.
_SIDE_LAYERS: Mapping[str, tuple[str, ...]] = {'DAHead': ('pam_conv_seg', 'cam_conv_seg')}

#: Settings that leave a head one output, or that our encoders can serve, where the config does not say otherwise.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    'EncHead': dict(use_se_loss=False),
    'DPTHead': dict(readout_type='ignore'),
}

#: Heads that end in a normalisation over their classes: their output is no free value for each channel.
_NORMALISED = ('SegmenterMaskTransformerHead',)


@MODELS.register_module()
class MMSegDecoder(nn.Module):
    """An mmseg decode head as a decoder, for any dense task: the task's own head computes the loss.

    The head's config is that of mmseg without ``in_channels`` and ``num_classes``, which the model and the task fill
    in. ``in_index`` chooses the levels of the representation, as in mmseg. Its losses and samplers are not used, its
    initial weights are. ``SyncBN`` becomes ``BN`` (said in the log): Rep-MTL differentiates heads twice, which
    SyncBN does not allow.

    A cascade head such as ``OCRHead`` reads the output of another one: give a list of two (or more) configs, as to
    ``CascadeEncoderDecoder``. The first heads are then trained through the last one alone; their ``num_classes``, here
    the number of regions, may be given.

    docs/mmseg.md lists the heads that were tried, and those that are refused.

    Args:
        in_channels: Channels of the representation, or of each of its levels; filled in by the model.
        out_channels: Channels of the output; filled in by the task's head.
        head: Config of a head of mmseg's registry, or a list of them.
        num_maps: The head predicts so many maps, and a 1x1 convolution makes the output of them unless their number is
            right already. For heads that normalise over their classes (Segmenter), which could not regress depth.

    Raises:
        ImportError: mmseg is not installed.
        ValueError: The head cannot be a decoder, or does not fit the representation or the task.
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        out_channels: int,
        head: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        num_maps: int | None = None,
    ) -> None:
        super().__init__()
        import_mmseg(type(self).__name__, 'models')
        self.in_channels = [in_channels] if isinstance(in_channels, int) else list(in_channels)
        self.out_channels = out_channels
        configs = [head] if isinstance(head, Mapping) else list(head)
        last = len(configs) - 1
        maps = out_channels if num_maps is None else num_maps
        self.stages = nn.ModuleList(
            _Stage(config, self.in_channels, maps if i == last else config.get('num_classes', maps))
            for i, config in enumerate(configs)
        )
        self._check_cascade()
        self._check_free(num_maps)
        self.project = nn.Identity() if maps == out_channels else nn.Conv2d(maps, out_channels, 1)

    def forward(self, features: Tensor | Sequence[Tensor]) -> Tensor:
        """Decodes the representation, (B, C, H, W) or a sequence of levels, to (B, out_channels, H', W')."""
        levels = [features] if isinstance(features, Tensor) else list(features)
        output = None
        for stage in self.stages:
            output = stage(levels, output)
        return self.project(output)

    def _check_cascade(self) -> None:
        if not self.stages:
            raise ValueError('MMSegDecoder: head is an empty list; give the config of a decode head')
        for position, stage in enumerate(self.stages):
            if stage.refines and position == 0:
                raise ValueError(
                    f'MMSegDecoder: {stage.name} refines the output of another head; give both, as '
                    f"head=[dict(type='FCNHead', ...), dict(type='{stage.name}', ...)]"
                )
            if position > 0 and not stage.refines:
                raise ValueError(
                    f'MMSegDecoder: {stage.name} does not read the output of the head before it; give it alone'
                )

    def _check_free(self, num_maps: int | None) -> None:
        stage = self.stages[-1]
        # Three channels may be classes or a normal, and nothing here tells them apart.
        if num_maps is None and self.out_channels <= 3 and _named(type(stage.head), _NORMALISED):
            raise ValueError(
                f'MMSegDecoder: {stage.name} normalises over its {self.out_channels} output channel(s), so it cannot '
                'regress depth or normals; set num_maps to the number of masks that the output is computed from, for '
                f'example num_maps=16 (or num_maps={self.out_channels} if the channels are classes)'
            )


class _Stage(nn.Module):
    """One mmseg head, and what is particular about calling it."""

    def __init__(self, config: Mapping[str, Any], in_channels: list[int], out_channels: int) -> None:
        super().__init__()
        from mmseg.models.decode_heads.cascade_decode_head import BaseCascadeDecodeHead

        kind = _class_of(config)
        self.name = kind.__name__
        self.refines = issubclass(kind, BaseCascadeDecodeHead)
        self._takes_pairs = _named(kind, ('DPTHead',)) is not None
        self._output = _entry(kind, _MAIN_OUTPUT)
        self.head = _build(kind, _complete(kind, config, in_channels, out_channels))
        if self.head.out_channels != out_channels:
            raise ValueError(
                f'MMSegDecoder: {self.name} predicts {self.head.out_channels} channel(s), the task needs {out_channels}'
            )
        for layer in _entry(kind, _SIDE_LAYERS) or ():
            getattr(self.head, layer).requires_grad_(False)
        # mmseg's initial weights; the models of this package do not ask their parts for them later.
        self.head._dump_init_info = lambda *args: None  # three lines of log for each parameter
        self.head.init_weights()
        del self.head._dump_init_info

    def forward(self, levels: list[Tensor], previous: Tensor | None) -> Tensor:
        """The one map (B, C, H, W) that the head makes of the levels, or ValueError if it returns several.

        ``previous`` is the output of the head before it, for heads that refine one.
        """
        inputs: list = levels
        if self._takes_pairs:
            inputs = [(level, None) for level in levels]  # (map, class token): a bare tensor would be cut into samples
        output = self.head(inputs, previous) if self.refines else self.head(inputs)
        if isinstance(output, (list, tuple)) and self._output is not None:
            output = output[self._output]
        if not isinstance(output, Tensor):
            raise ValueError(
                f'MMSegDecoder: {self.name} returns a {type(output).__name__} of {len(output)}, a decoder needs one '
                'map; switch off the auxiliary outputs in its config'
            )
        return output


def _class_of(config: Mapping[str, Any]) -> type[nn.Module]:
    """The class that a config names.

    Raises:
        ValueError: There is none, or it is one that cannot be a decoder.
    """
    from mmseg.registry import MODELS as MMSEG_MODELS

    kind = config.get('type')
    found = MMSEG_MODELS.get(kind) if isinstance(kind, str) else kind
    if not isinstance(found, type):
        raise ValueError(f'MMSegDecoder: type={kind!r} names no class of the mmseg registry')
    reason = _named(found, REFUSED)
    if reason is not None:
        raise ValueError(f'MMSegDecoder: {found.__name__} cannot be a decoder: {REFUSED[reason]}')
    return found


def _named(kind: type, names: Iterable[str]) -> str | None:
    """The first class name among ``names`` that ``kind`` is, or is derived from."""
    return next((base.__name__ for base in kind.__mro__ if base.__name__ in names), None)


def _entry(kind: type, table: Mapping[str, T]) -> T | None:
    """The entry for a class or for the first one that it is derived from; None if there is none."""
    name = _named(kind, table)
    return None if name is None else table[name]


def _complete(kind: type, config: Mapping[str, Any], in_channels: list[int], out_channels: int) -> dict[str, Any]:
    """The head's arguments, with what the representation and the task say of them."""
    arguments = {**(_entry(kind, _DEFAULTS) or {}), **_without_sync(dict(config), kind.__name__)}
    del arguments['type']
    if 'kernel_generate_head' in arguments:  # K-Net: an inner head reads the levels
        inner = arguments['kernel_generate_head']
        arguments['kernel_generate_head'] = dict(
            type=inner['type'], **_complete(_class_of(inner), inner, in_channels, out_channels)
        )
        updates = arguments.get('kernel_update_head', ())
        arguments['kernel_update_head'] = [dict(update, num_classes=out_channels) for update in updates]
        return arguments
    parameters = inspect.signature(kind).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    reads_all = not takes_all and 'in_index' not in parameters  # VPDDepthHead
    channels = list(in_channels) if reads_all else _select(in_channels, arguments.get('in_index', -1), kind.__name__)
    filled = dict(in_channels=channels, num_classes=out_channels)
    if _named(kind, ('DPTHead',)):
        arguments, filled = _complete_dpt(arguments, filled)
    for name, value in filled.items():
        if not takes_all and name not in parameters:
            continue
        given = arguments.get(name, value)
        if (list(given) if isinstance(given, (list, tuple)) else given) != value:
            raise ValueError(
                f'MMSegDecoder: {kind.__name__} has {name}={given}, but the representation and the task need {value}; '
                'leave it out'
            )
        arguments[name] = value
    return arguments


def _select(in_channels: list[int], index: int | Sequence[int], head: str) -> int | list[int]:
    """The channels of the levels that a head reads."""
    try:
        return in_channels[index] if isinstance(index, int) else [in_channels[i] for i in index]
    except IndexError:
        raise ValueError(
            f'MMSegDecoder: {head} has in_index={index}, but the representation has {len(in_channels)} level(s) with '
            f'channels {in_channels}'
        ) from None


def _complete_dpt(arguments: dict[str, Any], filled: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """DPT takes the width of its levels, which must be one, under another name."""
    channels = filled['in_channels']
    if not isinstance(channels, list) or len(set(channels)) != 1:
        raise ValueError(
            f'MMSegDecoder: DPTHead reads several levels of equal width, for example in_index=[0, 1, 2, 3] of a ViT; '
            f'it was given levels with channels {channels}'
        )
    if arguments['readout_type'] != 'ignore':
        raise ValueError(
            f'MMSegDecoder: DPTHead with readout_type={arguments["readout_type"]!r} reads class tokens, which our '
            "encoders do not return; use readout_type='ignore'"
        )
    return dict(arguments, input_transform='multiple_select'), dict(filled, embed_dims=channels[0])


def _without_sync(value: Any, head: str) -> Any:
    """The config with BN in the place of SyncBN, at any depth."""
    if isinstance(value, Mapping):
        if type_name(value.get('type')) in ('SyncBN', 'MMSyncBN', 'SyncBatchNorm'):
            print_log(f'MMSegDecoder: {head}: SyncBN is replaced by BN (heads are differentiated twice)', 'current')
            value = dict(value, type='BN')
        return {key: _without_sync(part, head) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_without_sync(part, head) for part in value)
    return value


def _build(kind: type[nn.Module], arguments: dict[str, Any]) -> Any:
    from mmseg.registry import MODELS as MMSEG_MODELS

    try:
        with warnings.catch_warnings():
            # Advice on predictions and losses, which are the task head's business.
            warnings.filterwarnings('ignore', message='Default ``avg_non_ignore``')
            warnings.filterwarnings('ignore', message='For binary segmentation')
            warnings.filterwarnings('ignore', message='threshold is not defined')
            return MMSEG_MODELS.build(dict(type=kind, _scope_='mmseg', **arguments))
    except (AssertionError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        shown = {key: value for key, value in arguments.items() if key in ('in_channels', 'in_index', 'num_classes')}
        raise ValueError(
            f'MMSegDecoder: mmseg cannot build {kind.__name__} with {shown}: {type(error).__name__}: {error}'
        ) from error
