"""Every decode head of mmseg as a task's decoder: one step of the whole engine, and its second derivative."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip('mmseg', reason='mmseg is not installed')

from mmrepmtl.engine import MultiTaskOptimWrapper
from mmrepmtl.methods.saliency import task_saliency
from mmrepmtl.models.decoders.mmseg import REFUSED
from mmrepmtl.registry import MODELS
from mmrepmtl.utils.mmseg import import_mmseg
from tests.models.mmseg_heads import HEADS, TRUNCATED, build_model, decoder_config, geometry_of, make_batch

REP = dict(type='RepMTL', lambda_tsr=0.9, lambda_csa=0.9)
DOCS = Path(__file__).resolve().parents[2] / 'docs' / 'mmseg.md'


@pytest.fixture(autouse=True)
def criss_cross(monkeypatch):
    """CCHead needs mmcv's compiled package only to import this module of it, which is plain PyTorch."""
    import_mmseg('these tests', 'models')
    from mmseg.models.decode_heads import cc_head

    if cc_head.CrissCrossAttention is None:
        import mmcv

        path = Path(mmcv.__file__).parent / 'ops' / 'cc_attention.py'
        spec = importlib.util.spec_from_file_location('cc_attention', path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setattr('mmengine.registry.MODELS.register_module', lambda *args, **kwargs: lambda kind: kind)
        spec.loader.exec_module(module)
        monkeypatch.undo()
        monkeypatch.setattr(cc_head, 'CrissCrossAttention', module.CrissCrossAttention)


def build(head, in_channels=(16, 16, 16, 16), out_channels=5, **kwargs):
    config = dict(type='MMSegDecoder', head=head, **kwargs)
    return MODELS.build(config, default_args=dict(in_channels=list(in_channels), out_channels=out_channels))


@pytest.mark.parametrize('name', HEADS)
def test_one_step_with_rep_mtl(name):
    """Segmentation, depth and normals: the losses and the penalty reach every weight that is trained."""
    model = build_model(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    wrapper = MultiTaskOptimWrapper(optimizer, shared='encoder', loss_transform='log', regularizers=[REP])
    seen = {}
    optimizer.register_step_pre_hook(lambda *args: seen.update(gradients(model)))
    log = model.train_step(make_batch(name), wrapper)
    assert torch.isfinite(log['loss']) and 0 < log['rep_mtl/tsr'] < 3
    assert {f'raw/{task}' for task in model.tasks} <= set(log)
    trained = {key for key, p in model.heads.named_parameters() if p.requires_grad}
    # Without a gradient an unused weight would stay None, and DDP would wait for it.
    assert trained == set(seen) and all(torch.isfinite(gradient).all() for gradient in seen.values())
    predictions = model.eval().predict(torch.stack(make_batch(name)['inputs']))[0].predictions
    size = geometry_of(name)[1]
    assert predictions['depth'].shape == (1, *size) and predictions['normal'].shape == (3, *size)


def gradients(model) -> dict:
    return {key: p.grad.clone() for key, p in model.heads.named_parameters() if p.grad is not None}


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)  # tensors that a head makes itself should fit
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize('name', HEADS)
def test_the_second_derivative_is_that_of_difference_quotients(name, double):
    """The slope of a function of the saliency along a direction of the head's weights, in float64."""
    torch.manual_seed(1)
    out_channels = 1 if name == 'VPDDepthHead' else 5
    config = decoder_config(name)
    decoder = build(config['head'], out_channels=out_channels, num_maps=config.get('num_maps')).double()
    for module in decoder.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout2d)):
            module.p = 0.0
    weights = [p for p in decoder.parameters() if p.requires_grad]
    with torch.no_grad():
        for weight in weights:  # no zeros, behind which a whole branch would be out of sight
            weight.add_(0.3 * torch.randn_like(weight))
    strides, (height, width) = geometry_of(name)
    levels, reduction = [], 1
    for stride in strides:
        reduction *= stride
        levels.append(torch.randn(4, 16, height // reduction, width // reduction))
    directions = [torch.randn_like(weight) for weight in weights]
    probes = [torch.randn_like(level) for level in levels]
    starts = [weight.detach().clone() for weight in weights]
    buffers = {key: buffer.clone() for key, buffer in decoder.named_buffers()}

    def penalty(step: float) -> torch.Tensor:
        with torch.no_grad():
            for weight, start, direction in zip(weights, starts, directions, strict=True):
                weight.copy_(start + step * direction)
            for key, buffer in decoder.named_buffers():
                buffer.copy_(buffers[key])
        torch.manual_seed(2)  # Ham draws its first bases
        views = [level.clone().requires_grad_() for level in levels]
        saliency = task_saliency([decoder(views).tanh().pow(3).sum()], views)
        # Smooth in the saliency, unlike TSR, whose kinks the quotient would meet.
        return sum((level * weight).sum().square() for level, weight in zip(saliency, probes, strict=True))

    slopes = torch.autograd.grad(penalty(0.0), weights, allow_unused=True)
    exact = sum(float((s * d).sum()) for s, d in zip(slopes, directions, strict=True) if s is not None)
    step = 1e-7  # a larger one crosses the kinks of ReLU and max pooling
    quotient = float((penalty(step) - penalty(-step)).detach()) / (2 * step)
    assert abs(exact) > 1e-3
    assert (exact == pytest.approx(quotient, rel=1e-5)) == (name not in TRUNCATED)


def test_every_head_of_mmseg_is_tried_or_refused():
    from mmseg.registry import MODELS as MMSEG_MODELS

    heads = {name for name in MMSEG_MODELS.module_dict if name.endswith('Head')}
    assert heads <= set(HEADS) | set(REFUSED) and not set(HEADS) & set(REFUSED)


def test_the_table_of_the_docs_is_what_the_tests_tried():
    rows = re.findall(r'^\| `(\w+)` \| (\w+) \|', DOCS.read_text(), re.M)
    table = dict(rows)
    assert len(rows) == len(table) and set(table) == set(HEADS) | set(REFUSED)
    assert {name for name, verdict in table.items() if verdict == 'refused'} == set(REFUSED)
    assert {name for name, verdict in table.items() if verdict == 'truncated'} == set(TRUNCATED)


@pytest.mark.parametrize('name', [name for name in REFUSED])
def test_refused_heads_say_why(name):
    with pytest.raises(ValueError, match=re.escape(f'{name} cannot be a decoder: {REFUSED[name]}')):
        build(dict(type=name, channels=8))


def test_a_head_derived_from_a_refused_one_is_refused():
    from mmseg.models.decode_heads import PSAHead

    with pytest.raises(ValueError, match='MyHead cannot be a decoder'):
        build(dict(type=type('MyHead', (PSAHead,), {}), channels=8))


def test_sync_bn_becomes_bn_at_any_depth_and_says_so(monkeypatch):
    said = []
    monkeypatch.setattr('mmrepmtl.models.decoders.mmseg.print_log', lambda message, logger: said.append(message))
    head = dict(HEADS['IterativeDecodeHead'], type='IterativeDecodeHead')
    decoder = build(head)
    norms = [m for m in decoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms and all(type(norm) is nn.BatchNorm2d for norm in norms)
    assert head['kernel_generate_head']['norm_cfg']['type'] == 'SyncBN'
    assert len(said) == 1 and 'IterativeDecodeHead: SyncBN is replaced by BN' in said[0]


def test_weights_are_initialised_as_in_mmseg_without_a_page_of_log(monkeypatch):
    dumped = []
    monkeypatch.setattr('mmengine.model.BaseModule._dump_init_info', lambda *args: dumped.append(args))
    torch.manual_seed(0)
    decoder = build(dict(type='FCNHead', channels=64, num_convs=1, norm_cfg=dict(type='BN')))
    assert decoder.stages[0].head.conv_seg.weight.detach().std() == pytest.approx(0.01, rel=0.2)
    assert dumped == []


def test_dpt_reads_whole_maps_also_with_two_samples(double):
    """mmseg's DPT takes (map, token) pairs; a tensor of two samples would be taken for one."""
    torch.manual_seed(0)
    decoder = build(decoder_config('DPTHead')['head']).eval()
    levels = [torch.randn(2, 16, 64 // s, 64 // s) for s in (4, 8, 16, 32)]
    both = decoder(levels)
    alone = torch.cat([decoder([level[i : i + 1] for level in levels]) for i in range(2)])
    assert both.shape[0] == 2
    torch.testing.assert_close(both, alone)


def test_the_second_head_of_a_cascade_reads_the_first():
    decoder = build(HEADS['OCRHead']).eval()
    first, second = (stage.head for stage in decoder.stages)
    levels = [torch.randn(2, 16, 16 // s, 16 // s) for s in (1, 2, 4, 8)]
    torch.testing.assert_close(decoder(levels), second(levels, first(levels)))
    assert first.num_classes == 6 and second.num_classes == 5


def test_da_head_trains_what_its_prediction_needs():
    decoder = build(decoder_config('DAHead')['head'])
    frozen = [key for key, p in decoder.named_parameters() if not p.requires_grad]
    assert {key.split('.')[3] for key in frozen} == {'pam_conv_seg', 'cam_conv_seg'}
    levels = [torch.randn(2, 16, 4, 4)] * 4
    torch.testing.assert_close(decoder.eval()(levels), decoder.stages[0].head(levels)[0])


def test_one_map_serves_where_the_representation_is_one():
    decoder = build(dict(type='FCNHead', channels=8, num_convs=1), in_channels=[16]).eval()
    maps = torch.randn(2, 16, 4, 4)
    torch.testing.assert_close(decoder(maps), decoder((maps,)))


FCN = dict(type='FCNHead', channels=8)
SEGMENTER = dict(type='SegmenterMaskTransformerHead', **HEADS['SegmenterMaskTransformerHead'])


@pytest.mark.parametrize(
    ('head', 'out_channels', 'message'),
    [
        (dict(type='OCRHead', channels=8, ocr_channels=4), 5, 'OCRHead refines the output of another head'),
        ([FCN, FCN], 5, 'FCNHead does not read the output of the head before it'),
        ([], 5, 'empty list'),
        (dict(type='NoHead'), 5, "type='NoHead' names no class"),
        (dict(FCN, in_index=7), 5, r'in_index=7, but the representation has 4 level\(s\)'),
        (dict(FCN, num_classes=19), 5, 'num_classes=19, but the representation and the task need 5'),
        (dict(FCN, in_channels=2048), 5, 'in_channels=2048, but the representation and the task need 16'),
        (dict(type='UPerHead', channels=8), 5, 'mmseg cannot build UPerHead'),
        (dict(type='VPDDepthHead', embed_dim=2, feature_dim=16), 5, r'predicts 1 channel\(s\), the task needs 5'),
        (dict(type='DPTHead', channels=8, in_index=[0, 1, 2, 3], readout_type='project'), 5, 'class tokens'),
        (dict(type='DPTHead', channels=8), 5, 'several levels of equal width'),
        (SEGMENTER, 1, 'normalises over its 1 output'),
        (SEGMENTER, 3, 'set num_maps'),
    ],
)
def test_what_cannot_work_is_one_clear_error(head, out_channels, message):
    with pytest.raises(ValueError, match=message):
        build(head, out_channels=out_channels)


def test_auxiliary_outputs_are_named():
    decoder = build(dict(HEADS['EncHead'], type='EncHead', use_se_loss=True))
    with pytest.raises(ValueError, match='EncHead returns a tuple of 2'):
        decoder([torch.randn(2, 16, 8 // s, 8 // s) for s in (1, 2, 4, 4)])


def test_segmenter_regresses_through_a_projection():
    """Alone its layer norm over the single class would return a constant, whatever the image."""
    decoder = build(SEGMENTER, out_channels=1, num_maps=6).eval()
    output = decoder([torch.randn(2, 16, 4, 4)] * 4)
    assert output.shape == (2, 1, 4, 4) and output.detach().std() > 1e-3
    assert isinstance(build(SEGMENTER, out_channels=3, num_maps=3).project, nn.Identity)
