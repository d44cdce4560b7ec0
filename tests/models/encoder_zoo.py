"""The tested encoders: docs/encoders.md shows this table, and tests/models/test_encoder_zoo.py verifies it."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Encoder:
    """An encoder with what is claimed of it.

    Args:
        name: timm's.
        channels, strides: Of the returned levels.
        size: (H, W) of the test images.
        settings: Further arguments of ``TimmEncoder``.
        prefix_tokens: Class and register tokens of the model.
        inside: Layout that timm computes in.
        checkpointing: Whether timm has activation checkpointing for it.
    """

    name: str
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    size: tuple[int, int] = (64, 96)
    settings: dict[str, Any] = field(default_factory=dict)
    prefix_tokens: int = 0
    inside: str = 'NCHW'
    checkpointing: bool = True

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of ``TimmEncoder``."""
        fixed = self.inside == 'NLC' or self.name.startswith(('swin', 'hiera', 'maxvit', 'coatnet'))
        return dict(name=self.name, **self.settings) | (dict(model_args=dict(img_size=self.size)) if fixed else {})


_DILATED = dict(output_stride=8)
_FOUR = dict(out_indices=(-4, -3, -2, -1))

ENCODERS = [
    Encoder('resnet18', (512,), (8,), (32, 48), _DILATED),
    Encoder('resnet50', (2048,), (8,), (32, 48), _DILATED),
    Encoder('resnext50_32x4d', (2048,), (32,)),
    Encoder('densenet121', (1024,), (32,)),
    Encoder('convnext_atto', (40, 80, 160, 320), (4, 8, 16, 32), settings=_FOUR),
    Encoder('efficientnet_b0', (320,), (32,)),
    Encoder('mobilenetv3_small_100', (576,), (32,)),
    Encoder('regnety_002', (368,), (8,), (32, 48), _DILATED),
    Encoder('hrnet_w18_small', (128, 256, 512, 1024), (4, 8, 16, 32), settings=_FOUR, checkpointing=False),
    Encoder('vit_tiny_patch16_224', (192,), (16,), prefix_tokens=1, inside='NLC'),
    Encoder('deit_tiny_distilled_patch16_224', (192,), (16,), prefix_tokens=2, inside='NLC'),
    Encoder('vit_small_patch14_reg4_dinov2', (384,), (14,), (42, 56), prefix_tokens=5, inside='NLC'),
    Encoder('vit_small_patch16_dinov3', (384,), (16,), prefix_tokens=5, inside='NLC'),
    Encoder('eva02_tiny_patch14_224', (192,), (14,), (42, 56), prefix_tokens=1, inside='NLC'),
    Encoder('swin_tiny_patch4_window7_224', (96, 192, 384, 768), (4, 8, 16, 32), settings=_FOUR, inside='NHWC'),
    Encoder('hiera_tiny_224', (768,), (32,)),
    Encoder('pvt_v2_b0', (32, 64, 160, 256), (4, 8, 16, 32), settings=_FOUR),
    Encoder('efficientvit_b0', (128,), (32,)),
    Encoder('mobilevit_xxs', (320,), (32,)),
    Encoder('coatnet_pico_rw_224', (512,), (32,)),
    Encoder('maxvit_pico_rw_256', (256,), (32,)),
]


def row(encoder: Encoder, parameters: int) -> str:
    """The line of an encoder in docs/encoders.md."""

    def levels(values: tuple[int, ...]) -> str:
        return ', '.join(map(str, values))

    settings = ', '.join(f'`{name}={value}`' for name, value in encoder.settings.items())
    cells = (
        f'`{encoder.name}`',
        settings or '-',
        encoder.inside,
        levels(encoder.channels),
        levels(encoder.strides),
        str(encoder.prefix_tokens),
        f'{parameters / 1e6:.1f}',
        'yes' if encoder.checkpointing else 'no',
    )
    return f'| {" | ".join(cells)} |'
