"""One Rep-MTL step through each kind of encoder, and the table of docs/encoders.md."""

from pathlib import Path

import pytest
import timm
import torch

from mmrepmtl.engine import MultiTaskOptimWrapper
from mmrepmtl.methods import rep_mtl
from mmrepmtl.methods.weighting import Weighting
from mmrepmtl.models import FPNNeck, TimmEncoder, ToMapNeck
from mmrepmtl.registry import MODELS
from tests.models.encoder_zoo import ENCODERS, Encoder, row
from tests.models.toy import NUM_CLASSES, head_configs, make_images, make_sample

pytestmark = pytest.mark.filterwarnings('ignore:RepMTL. entropy')

TASKS = ('semseg', 'depth', 'normal')
BATCH = 4
BY_NAME = {encoder.name: encoder for encoder in ENCODERS}
DOCS = Path(__file__).resolve().parents[2] / 'docs/encoders.md'

#: (encoder, layout, neck, shared): every encoder as maps, several levels through a pyramid, tokens and channels last.
CASES = [
    (encoder, 'NCHW', dict(type='FPNNeck', out_channels=8) if len(encoder.channels) > 1 else None, 'encoder')
    for encoder in ENCODERS
]
CASES += [
    (BY_NAME['pvt_v2_b0'], 'NCHW', dict(type='FPNNeck', out_channels=8, out_indices=(0, -1)), 'neck'),
    (BY_NAME['swin_tiny_patch4_window7_224'], 'NHWC', dict(type='ToMapNeck'), 'encoder'),
    (BY_NAME['vit_tiny_patch16_224'], 'NLC', dict(type='ToMapNeck'), 'encoder'),
    (BY_NAME['deit_tiny_distilled_patch16_224'], 'NLC', dict(type='ToMapNeck', readout='add'), 'encoder'),
    (BY_NAME['vit_small_patch14_reg4_dinov2'], 'NLC', dict(type='ToMapNeck', readout='add'), 'encoder'),
]


class Nothing(Weighting):
    """Leaves the penalty alone in the objective."""

    def forward(self, losses_T, labelled_T=None, advance=True):
        return (losses_T * 0).sum()


def build(encoder: Encoder, layout: str, neck: dict | None):
    torch.manual_seed(0)
    # GroupNorm: the anchors of CSA are degenerate below BatchNorm in small batches. Levels that a head does not read
    # have no saliency, so the heads read different ones.
    decoders = [dict(type='ConvDecoder', hidden_channels=8, num_convs=1, norm='GN', in_index=i) for i in (0, -1, -1)]
    model = MODELS.build(
        dict(
            type='MultiTaskModel',
            encoder=dict(type='TimmEncoder', layout=layout, **encoder.arguments),
            neck=neck,
            heads=dict(
                semseg=dict(type='SegmentationHead', num_classes=NUM_CLASSES, decoder=decoders[0]),
                depth=dict(type='DepthHead', decoder=decoders[1]),
                normal=dict(type='NormalHead', decoder=decoders[2]),
            ),
        )
    )
    for name, parameter in model.encoder.named_parameters():
        if name.endswith('weight') and not parameter.any():  # timm starts some residual branches at zero
            torch.nn.init.constant_(parameter, 0.5)
    return model


def step(model, encoder: Encoder, layout: str, shared: str, **settings):
    """One training step; returns {parameter: its gradient before the step} and what was logged."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    gradients = {}
    optimizer.register_step_pre_hook(
        lambda *_: gradients.update((name, parameter.grad) for name, parameter in model.named_parameters())
    )
    penalty = dict(type='RepMTL', layout=layout, num_prefix_tokens=encoder.prefix_tokens if layout == 'NLC' else 0)
    wrapper = MultiTaskOptimWrapper(optimizer, shared=shared, loss_transform='log', regularizers=[penalty], **settings)
    samples = [make_sample(index, encoder.size) for index in range(BATCH)]
    batch = dict(inputs=list(255 * make_images(range(BATCH), encoder.size)), data_samples=samples)
    optimizer.zero_grad = lambda *_, **__: None
    return model.train_step(batch, wrapper), gradients


@pytest.mark.parametrize(
    ('encoder', 'layout', 'neck', 'shared'), CASES, ids=lambda value: getattr(value, 'name', None) or str(value)
)
def test_one_rep_mtl_step(encoder, layout, neck, shared, monkeypatch):
    model = build(encoder, layout, neck)
    outputs, saliencies = [], []
    getattr(model, shared).register_forward_hook(lambda *call: outputs.append(call[2]))
    stack = rep_mtl.stack_levels
    monkeypatch.setattr(rep_mtl, 'stack_levels', lambda *args: saliencies.append(stack(*args)) or saliencies[-1])

    log, gradients = step(model, encoder, layout, shared, weighting=Nothing())
    assert log['loss'].item() == pytest.approx(
        0.9 * log['rep_mtl/tsr'].item() + 0.9 * log['rep_mtl/csa'].item(), rel=1e-5
    )
    for name, gradient in gradients.items():
        assert gradient is not None and torch.isfinite(gradient).all(), name
        if gradient.dim() > 1:  # a bias may only move what a normalisation, a ReLU or an L1 loss takes out again
            assert gradient.any(), name

    if shared == 'encoder':
        check_levels(encoder, layout, model.encoder, outputs[0], saliencies[0])
        check_claims(encoder, model.encoder)
    log, _ = step(model, encoder, layout, shared)
    assert all(torch.isfinite(value).all() for value in log.values())
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def check_levels(encoder: Encoder, layout: str, built: TimmEncoder, output, saliency) -> None:
    """Z has the stated layout, channels and strides; the saliency is (T, B, C, *positions) of the patches alone."""
    levels = [output] if isinstance(output, torch.Tensor) else list(output)
    assert tuple(built.channels) == encoder.channels and tuple(built.reductions) == encoder.strides
    for level, part, channels, stride in zip(levels, saliency, encoder.channels, encoder.strides, strict=True):
        height, width = encoder.size[0] // stride, encoder.size[1] // stride
        assert len({channels, height, width}) == 3, 'the axes could be confused'
        tokens = encoder.prefix_tokens + height * width
        shapes = dict(NCHW=(channels, height, width), NHWC=(height, width, channels), NLC=(tokens, channels))
        assert level.shape == (BATCH, *shapes[layout])
        assert part.shape == (len(TASKS), BATCH, channels, *((height * width,) if layout == 'NLC' else (height, width)))


def check_claims(encoder: Encoder, built: TimmEncoder) -> None:
    """The rest of the table's line: :func:`check_levels` has seen channels and strides."""
    inner = getattr(built.model, 'model', built.model)
    assert getattr(inner, 'num_prefix_tokens', 0) == encoder.prefix_tokens
    channels_last = getattr(built.model, 'output_fmt', 'NCHW') == 'NHWC'
    tokens = hasattr(inner, 'num_prefix_tokens')
    assert encoder.inside == ('NHWC' if channels_last else 'NLC' if tokens else 'NCHW')
    assert hasattr(inner, 'set_grad_checkpointing')
    line = row(encoder, sum(parameter.numel() for parameter in built.parameters()))
    assert line in DOCS.read_text().splitlines(), line


def test_the_table_shows_the_tested_encoders():
    lines = [line for line in DOCS.read_text().splitlines() if line.startswith('| `') and line.count('|') == 9]
    assert [line.split('`')[1] for line in lines] == [encoder.name for encoder in ENCODERS]


TOKENS = [encoder for encoder in ENCODERS if encoder.inside == 'NLC']


@pytest.mark.parametrize('encoder', TOKENS, ids=lambda encoder: encoder.name)
def test_tokens_are_those_of_the_last_block(encoder):
    """Prefix tokens first; the patches in the order of the map that the other layout returns."""
    images = make_images(range(2), encoder.size)
    built = TimmEncoder(**encoder.arguments, layout='NLC').eval()
    seen = []
    built.model.model.blocks[-1].register_forward_hook(lambda *call: seen.append(call[2]))
    tokens = built(images)
    torch.testing.assert_close(tokens, seen[0], rtol=0, atol=0)
    assert built.num_prefix_tokens == encoder.prefix_tokens
    assert built.grid == tuple(extent // encoder.strides[0] for extent in encoder.size)

    maps = TimmEncoder(**encoder.arguments).eval()
    maps.load_state_dict(built.state_dict())
    facts = dict(layout='NLC', grid=built.grid, num_prefix_tokens=built.num_prefix_tokens)
    torch.testing.assert_close(ToMapNeck(built.channels, **facts)(tokens), maps(images), rtol=0, atol=0)
    added = ToMapNeck(built.channels, readout='add', **facts)(tokens)
    torch.testing.assert_close(added, maps(images) + tokens[:, 0][..., None, None])


@pytest.mark.parametrize('name', ['test_convnext', 'swin_tiny_patch4_window7_224'])
def test_channels_last_is_the_same_representation(name):
    arguments = dict(name=name, out_indices=(0, 1), model_args=dict(img_size=64) if 'swin' in name else None)
    encoders = [TimmEncoder(**arguments, layout=layout).eval() for layout in ('NCHW', 'NHWC')]
    encoders[1].load_state_dict(encoders[0].state_dict())
    maps, last = (encoder(make_images(range(2), (64, 64))) for encoder in encoders)
    assert [level.shape[-1] for level in last] == encoders[1].channels
    for expected, level in zip(maps, ToMapNeck(encoders[1].channels, layout='NHWC')(last), strict=True):
        torch.testing.assert_close(level, expected, rtol=0, atol=0)


def test_tokens_of_a_local_checkpoint(tmp_path):
    model_args = dict(img_size=(32, 48))
    source = TimmEncoder('test_vit', layout='NLC', model_args=model_args).eval()
    weights = {name.removeprefix('model.model.'): value for name, value in source.state_dict().items()}
    full = timm.create_model('test_vit', img_size=(32, 48)).state_dict()
    torch.save(full | weights, tmp_path / 'vit.pth')
    loaded = TimmEncoder('test_vit', layout='NLC', checkpoint=tmp_path / 'vit.pth', model_args=model_args).eval()
    images = make_images(range(2), (32, 48))
    torch.testing.assert_close(loaded(images), source(images))


def test_a_pyramid_of_identities_adds_the_deeper_levels():
    levels = [torch.rand(2, 3, 8, 12), torch.rand(2, 3, 4, 6), torch.rand(2, 3, 2, 3)]
    for out_indices in ((0,), (1,), (0, -1), (0, 1, 2)):
        neck = FPNNeck([3, 3, 3], out_channels=3, out_indices=out_indices)
        for layer in [*neck.lateral, *neck.smooth]:
            torch.nn.init.dirac_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
        found = neck(levels)
        found = [found] if len(out_indices) == 1 else list(found)
        assert neck.channels == [3] * len(found)
        for index, level in zip(out_indices, found, strict=True):
            first = range(3)[index]
            expected = levels[first].clone()
            for deeper in range(first + 1, 3):
                factor = 2 ** (deeper - first)
                expected += levels[deeper].repeat_interleave(factor, 2).repeat_interleave(factor, 3)
            torch.testing.assert_close(level, expected)


def small(layout: str, neck: dict | None, **heads):
    name = 'test_vit' if layout == 'NLC' else 'test_resnet'
    encoder = dict(type='TimmEncoder', name=name, layout=layout, model_args=dict(img_size=(32, 48)))
    if layout != 'NLC':
        del encoder['model_args']
    return MODELS.build(dict(type='MultiTaskModel', encoder=encoder, neck=neck, heads=heads or head_configs(TASKS)))


@pytest.mark.parametrize(
    ('layout', 'neck', 'message'),
    [
        ('NLC', None, "returns layout 'NLC', but ConvDecoder of task 'semseg' reads 'NCHW'.*ToMapNeck"),
        ('NHWC', None, "returns layout 'NHWC', but ConvDecoder"),
        ('NLC', dict(type='GlobalPoolNeck'), "returns layout 'NLC', which GlobalPoolNeck does not read"),
        ('NHWC', dict(type='TaskSaliencyDecoder'), "returns layout 'NHWC', which TaskSaliencyDecoder does not read"),
        ('NHWC', dict(type='ToMapNeck', layout='NCHW'), "layout='NCHW', but it is 'NHWC'"),
        ('NLC', dict(type='ToMapNeck', grid=(3, 2)), r'grid=\(3, 2\), but it is \(2, 3\)'),
        ('NLC', dict(type='ToMapNeck', num_prefix_tokens=0), 'num_prefix_tokens=0, but it is 1'),
        ('NCHW', dict(type='FPNNeck'), 'several levels of the encoder'),
        ('NCWH', None, "layout must be one of .*'NCWH'"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused_when_the_model_is_built(layout, neck, message):
    with pytest.raises(ValueError, match=message):
        small(layout, neck)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(name='test_resnet'), "layout='NLC' needs a vision transformer; ResNet has no tokens"),
        (dict(name='test_efficientnet'), 'EfficientNet has no tokens'),
    ],
)
def test_networks_without_tokens(arguments, message):
    with pytest.raises(ValueError, match=message):
        TimmEncoder(**arguments, layout='NLC')


def test_tokens_need_images_of_one_size():
    encoder = TimmEncoder('test_vit', layout='NLC', model_args=dict(img_size=(32, 48), dynamic_img_size=True))
    assert encoder(torch.rand(1, 3, 32, 48)).shape == (1, 7, 64)
    with pytest.raises(ValueError, match=r'images of \(32, 48\) only, got \(48, 32\)'):
        encoder(torch.rand(1, 3, 48, 32))


TOKEN_NECK = dict(in_channels=[4], layout='NLC', grid=(2, 3), num_prefix_tokens=1)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(TOKEN_NECK, layout='NCL'), "'NCL'"),
        (dict(TOKEN_NECK, grid=None), 'grid='),
        (dict(TOKEN_NECK, layout='NHWC', num_prefix_tokens=0), 'grid='),
        (dict(in_channels=4, layout='NHWC', num_prefix_tokens=1), "needs layout='NLC'"),
        (dict(TOKEN_NECK, readout='project'), "'project'"),
        (dict(TOKEN_NECK, num_prefix_tokens=0, readout='add'), 'needs a class token'),
    ],
)
def test_settings_of_the_token_neck(arguments, message):
    with pytest.raises(ValueError, match=message):
        ToMapNeck(**arguments)


@pytest.mark.parametrize(
    ('layout', 'shape'),
    [
        ('NLC', (1, 6, 4)),
        ('NLC', (1, 8, 4)),
        ('NLC', (1, 4, 7)),
        ('NLC', (1, 4, 2, 3)),
        ('NHWC', (1, 4, 2, 3)),
        ('NCHW', (1, 2, 3, 4)),
    ],
)
def test_the_token_neck_refuses_another_layout(layout, shape):
    neck = ToMapNeck(**TOKEN_NECK) if layout == 'NLC' else ToMapNeck([4], layout)
    with pytest.raises(ValueError, match='ToMapNeck'):
        neck(torch.rand(shape))


@pytest.mark.parametrize('out_indices', [(), (3,), (0, 0), (0, -3)])
def test_levels_that_a_pyramid_does_not_have(out_indices):
    with pytest.raises(ValueError, match='must name different ones of 3 levels'):
        FPNNeck([3, 4, 5], out_indices=out_indices)
