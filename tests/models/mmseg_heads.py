"""Configs of mmseg's decode heads at their smallest, for the tests of MMSegDecoder."""

import torch
from torch import Tensor, nn

from mmrepmtl.registry import MODELS
from tests.models.toy import make_images, make_sample

_NORM = dict(norm_cfg=dict(type='SyncBN', requires_grad=True))  # as in mmseg's own configs
_ALL = [0, 1, 2, 3]
_NON_LOCAL = dict(channels=8, reduction=2, use_scale=True, mode='embedded_gaussian', in_index=2, **_NORM)
_KERNEL_UPDATE = dict(
    type='KernelUpdateHead',
    num_heads=2,
    feedforward_channels=16,
    in_channels=8,
    out_channels=8,
    ffn_act_cfg=dict(type='ReLU', inplace=True),
    feat_transform_cfg=dict(conv_cfg=dict(type='Conv2d'), act_cfg=None),
    kernel_updator_cfg=dict(
        type='KernelUpdator', in_channels=8, feat_channels=8, out_channels=8, norm_cfg=dict(type='LN')
    ),
)

#: {head: its config without ``in_channels`` and ``num_classes``, or the configs of a cascade}.
HEADS: dict[str, dict | list[dict]] = dict(
    ANNHead=dict(channels=8, project_channels=4, query_scales=(1,), key_pool_scales=(1, 2), in_index=[1, 2], **_NORM),
    APCHead=dict(channels=8, pool_scales=(1, 2), fusion=True, in_index=2, **_NORM),
    ASPPHead=dict(channels=8, dilations=(1, 2, 3), **_NORM),
    CCHead=dict(channels=16, in_index=2, **_NORM),
    DAHead=dict(channels=16, pam_channels=4, in_index=2, **_NORM),
    DMHead=dict(channels=8, filter_sizes=(1, 3), fusion=True, in_index=2, **_NORM),
    DNLHead=_NON_LOCAL,
    DPTHead=dict(channels=8, in_index=_ALL, post_process_channels=[4, 4, 4, 4], **_NORM),
    DepthwiseSeparableASPPHead=dict(channels=8, c1_in_channels=16, c1_channels=4, dilations=(1, 2), **_NORM),
    DepthwiseSeparableFCNHead=dict(channels=8, num_convs=1, concat_input=False, **_NORM),
    EMAHead=dict(channels=8, ema_channels=8, num_bases=4, num_stages=2, in_index=2, **_NORM),
    EncHead=dict(channels=8, num_codes=4, in_index=[1, 2, 3], **_NORM),
    FCNHead=dict(channels=8, num_convs=1, **_NORM),
    FPNHead=dict(channels=8, in_index=_ALL, feature_strides=[4, 8, 16, 32], **_NORM),
    GCHead=dict(channels=8, ratio=1 / 4, pooling_type='att', fusion_types=('channel_add',), in_index=2, **_NORM),
    ISAHead=dict(channels=8, isa_channels=4, down_factor=(2, 2), in_index=2, **_NORM),
    IterativeDecodeHead=dict(
        num_stages=1,
        kernel_generate_head=dict(type='FCNHead', channels=8, num_convs=1, **_NORM),
        kernel_update_head=[_KERNEL_UPDATE],
    ),
    LRASPPHead=dict(channels=8, in_index=[0, 1, 2], branch_channels=(4, 4), input_transform='multiple_select', **_NORM),
    LightHamHead=dict(channels=8, in_index=[1, 2, 3], ham_channels=16, ham_kwargs=dict(MD_R=4), **_NORM),
    NLHead=_NON_LOCAL,
    OCRHead=[
        dict(type='FCNHead', channels=8, num_convs=1, in_index=2, num_classes=6, **_NORM),
        dict(type='OCRHead', channels=8, ocr_channels=4, in_index=2, **_NORM),
    ],
    PSPHead=dict(channels=8, pool_scales=(1, 2), in_index=2, **_NORM),
    SETRMLAHead=dict(channels=16, mla_channels=4, up_scale=2, in_index=_ALL, **_NORM),
    SETRUPHead=dict(channels=8, num_convs=1, up_scale=2, **_NORM),
    STDCHead=dict(channels=8, num_convs=1, **_NORM),
    SegformerHead=dict(channels=8, in_index=_ALL, **_NORM),
    SegmenterMaskTransformerHead=dict(channels=16, num_layers=1, num_heads=2, embed_dims=16, in_index=2),
    UPerHead=dict(channels=8, pool_scales=(1, 2), in_index=_ALL, **_NORM),
    VPDDepthHead=dict(embed_dim=2, feature_dim=16, num_deconv_layers=1, num_deconv_filters=(2,)),
)

#: Heads whose own gradient leaves out a part (``torch.no_grad`` around their iterations), so that no difference
#: quotient can agree with it.
TRUNCATED = ('EMAHead',)

#: Heads for one kind of task.
DEPTH_ONLY = ('VPDDepthHead',)


def decoder_config(name: str) -> dict:
    config = HEADS[name]
    head = config if isinstance(config, list) else dict(type=name, **config)
    maps = dict(num_maps=6) if name == 'SegmenterMaskTransformerHead' else {}
    return dict(type='MMSegDecoder', head=head, **maps)


class Pyramid(nn.Module):
    """Four levels of 16 channels, with the strides that a head expects."""

    def __init__(self, strides=(4, 2, 2, 2)) -> None:
        super().__init__()
        self.channels = [16] * 4
        self.layers = nn.ModuleList(
            nn.Conv2d(channels, 16, 3, stride, 1) for channels, stride in zip((3, 16, 16, 16), strides, strict=True)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        levels = []
        for layer in self.layers:
            images = torch.tanh(layer(images))
            levels.append(images)
        return tuple(levels)


def geometry_of(name: str) -> tuple[tuple[int, ...], tuple[int, int]]:
    """Strides of the levels and size of the images; LRASPP pools windows of 49 x 49, SETR-MLA needs equal levels."""
    if name == 'LRASPPHead':
        return (1, 1, 1, 1), (50, 50)
    return (4, 1, 1, 1) if name == 'SETRMLAHead' else (4, 2, 2, 2), (64, 64)


def build_model(name: str) -> nn.Module:
    """All dense tasks with this head as their decoder."""
    torch.manual_seed(0)
    decoder = decoder_config(name)
    plain = dict(type='ConvDecoder', hidden_channels=8, num_convs=1, norm=None)
    other = plain if name in DEPTH_ONLY else decoder
    heads = dict(
        semseg=dict(type='SegmentationHead', num_classes=5, decoder=other),
        depth=dict(type='DepthHead', decoder=decoder),
        normal=dict(type='NormalHead', decoder=other),
    )
    return MODELS.build(dict(type='MultiTaskModel', encoder=Pyramid(geometry_of(name)[0]), heads=heads))


def make_batch(name: str, count: int = 4) -> dict:
    size = geometry_of(name)[1]
    return dict(inputs=list(make_images(range(count), size)), data_samples=[make_sample(i, size) for i in range(count)])
