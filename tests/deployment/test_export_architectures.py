"""Networks of different kinds, exported and compared with PyTorch in batches of 1 and 3."""

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config

from mmrepmtl.apis import load_config
from mmrepmtl.deployment import export
from mmrepmtl.deployment.check import BATCHES, compare
from mmrepmtl.deployment.export import input_size
from mmrepmtl.deployment.writer import to_onnx
from mmrepmtl.registry import MODELS
from tests.apis.toy import ROOT
from tests.models.mmseg_heads import build_model as build_mmseg
from tests.models.toy import PlainEncoder, build_model

BASES = ROOT / 'configs/_base_/models'


def build(base: str, **encoder):
    cfg = Config.fromfile(BASES / base)
    cfg.model.encoder.update(encoder)
    return MODELS.build(cfg.model)


def build_vit():
    encoder = dict(type='TimmEncoder', name='test_vit', layout='NLC', model_args=dict(img_size=(32, 48)))
    neck = dict(type='ToMapNeck', readout='add')
    return build_model(encoder=MODELS.build(encoder), neck=neck)


def build_tsd():
    model = build_model(['semseg', 'depth', 'normal'], neck=dict(type='TaskSaliencyDecoder'))
    for parameter in model.neck.parameters():  # zero at the start, where every mask is 1
        torch.nn.init.normal_(parameter)
    return model


def build_office():
    return MODELS.build(load_config(ROOT / 'configs/office31/rep-mtl_resnet18-concat_b32-5e_office31-64.py').model)


@pytest.mark.slow
@pytest.mark.parametrize(
    'builder, size, shapes',
    [
        (lambda: build('resnet18-d16_conv.py'), (32, 48), dict(semseg=13, depth=1, normal=3)),
        (lambda: build('resnet50-d8_deeplab.py', name='resnet18'), (40, 56), dict(semseg=13, depth=1, normal=3)),
        (build_vit, (32, 48), dict(semseg=5, depth=1, normal=3, kind=4, pose=3)),
        (build_tsd, (16, 24), dict(semseg=5, depth=1, normal=3)),
        (lambda: build_mmseg('SegformerHead'), (64, 64), dict(semseg=5, depth=1, normal=3)),
        (lambda: build_mmseg('VPDDepthHead'), (64, 64), dict(semseg=5, depth=1, normal=3)),
        (build_office, (64, 64), dict(amazon=31, dslr=31, webcam=31)),
    ],
    ids=['resnet', 'deeplab', 'vit', 'tsd', 'segformer', 'vpd', 'office'],
)
def test_the_graph_is_the_network(builder, size, shapes):
    torch.manual_seed(0)
    model = builder().eval()
    made = to_onnx(model, size, {})
    dense = {task: [] if task in ('kind', 'pose', 'amazon', 'dslr', 'webcam') else list(size) for task in shapes}
    assert made.shapes == {task: ['batch', channels, *dense[task]] for task, channels in shapes.items()}
    assert BATCHES == (1, 3)
    found = compare(made.content, model, [size], 1e-4)
    assert all(difference.relative < 1e-4 for difference in found.values()) and list(found) == list(shapes)


@pytest.mark.parametrize('variant', ['per-task', 'concat'])
def test_the_size_of_office_is_that_of_all_its_domains(variant):
    cfg = load_config(ROOT / f'configs/office31/rep-mtl_resnet18-{variant}_b32-5e_office31-64.py')
    assert input_size(cfg) == (64, 64)


class FusedAttention(PlainEncoder):
    """As in timm's Hiera: five axes, which torch's exporter does not know, unless ``fused_attn`` is off."""

    def __init__(self) -> None:
        super().__init__()
        self.fused_attn = True

    def forward(self, images):
        z = super().forward(images)
        q = z.flatten(2).transpose(1, 2)[:, None, None]
        if self.fused_attn:
            attended = F.scaled_dot_product_attention(q, q, q)
        else:
            attended = (q @ q.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1) @ q
        return attended[:, 0, 0].transpose(1, 2).unflatten(2, tuple(z.shape[-2:]))


def test_attention_of_timm_is_exported_step_by_step():
    model = build_model(['depth'], encoder=FusedAttention()).eval()
    assert compare(to_onnx(model, (16, 24), {}).content, model, [(16, 24)], 1e-4)
    assert model.encoder.fused_attn


def test_the_encoder_is_not_compiled_for_the_comparison():
    options = dict(type='TimmEncoder', name='test_resnet', compile=True)
    cfg = Config(dict(model=dict(type='MultiTaskModel', encoder=options)))
    assert export._without_compilation(cfg).model.encoder == dict(options, compile=False)
    assert cfg.model.encoder.compile
