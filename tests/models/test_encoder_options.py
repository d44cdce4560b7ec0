"""Activation checkpointing and compilation of the encoder change nothing but memory and time."""

import copy
import gc
import runpy
import shutil
import sys

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.parallel import DistributedDataParallel

from mmrepmtl.apis import load_config
from mmrepmtl.engine import MultiTaskOptimWrapper
from mmrepmtl.models import TimmEncoder
from mmrepmtl.models.encoders.recomputation import Recomputation
from mmrepmtl.registry import MODELS
from mmrepmtl.utils.checkpoint import load_checkpoint
from tests.distributed.launch import run_processes
from tests.models.encoder_zoo import ENCODERS
from tests.models.toy import head_configs, make_images, make_sample
from tests.tools.harness import ROOT, TINY

TASKS = ('semseg', 'depth', 'normal')
SIZE = (32, 48)
REP = dict(type='RepMTL', lambda_tsr=0.5, lambda_csa=0.5)
#: {kind: arguments of a small TimmEncoder}: BatchNorm with running statistics; drop path, which draws random numbers.
KINDS = dict(
    resnet=dict(name='test_resnet', output_stride=8),
    efficientnet=dict(name='test_efficientnet'),
    convnext=dict(name='test_convnext', model_args=dict(drop_path_rate=0.2)),
    vit=dict(name='test_vit', model_args=dict(img_size=SIZE, drop_path_rate=0.2)),
    tokens=dict(name='test_vit', layout='NLC', model_args=dict(img_size=SIZE)),
)


def build(kind: str, **options) -> torch.nn.Module:
    torch.manual_seed(0)
    encoder = dict(type='TimmEncoder', **KINDS[kind], **options)
    neck = dict(type='ToMapNeck') if kind == 'tokens' else None
    model = MODELS.build(dict(type='MultiTaskModel', encoder=encoder, neck=neck, heads=head_configs(TASKS)))
    for parameter in model.encoder.parameters():
        if not parameter.any():  # timm starts some residual branches at zero
            torch.nn.init.normal_(parameter, std=0.5)
    return model.double()


def train(model, kind: str, indices=range(4), **settings) -> dict[str, torch.Tensor]:
    """Two steps of SGD with Rep-MTL; returns the state of the model."""
    tokens = dict(layout='NLC', num_prefix_tokens=1) if kind == 'tokens' else {}
    settings = dict(loss_transform='log', regularizers=[dict(REP, **tokens)], **settings)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    wrapper = MultiTaskOptimWrapper(optimizer, shared='encoder', **settings)
    for seed in range(2):
        torch.manual_seed(seed)
        own = [10 * seed + index for index in indices]
        samples = [make_sample(index, SIZE, dtype=torch.float64) for index in own]
        with wrapper.optim_context(model):
            losses = model(make_images(own, SIZE, torch.float64), samples, mode='loss')
        wrapper.update_params(losses['loss'])
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    return {name: value.clone() for name, value in inner.state_dict().items()}


def assert_equal(state, expected, start):
    assert list(state) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=1e-9, atol=1e-11, msg=name)
    moved = [name for name in expected if name.startswith('encoder') and not torch.equal(expected[name], start[name])]
    assert len(moved) > 10


def saved_bytes(encoder, images) -> int:
    """Size of what the graph holds of a forward pass."""
    held = {}
    with saved_tensors_hooks(lambda t: held.update({t.data_ptr(): t.numel() * t.element_size()}) or t, lambda t: t):
        output = encoder(images)
    assert (output if isinstance(output, torch.Tensor) else output[0]).requires_grad
    return sum(held.values())


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('aggregator', [None, dict(type='PCGrad')], ids=['one backward', 'a backward per task'])
def test_checkpointing_trains_the_same_network(kind, aggregator):
    start = build(kind).state_dict()
    states = [train(build(kind, grad_checkpointing=on), kind, aggregator=aggregator) for on in (False, True)]
    # The state holds BatchNorm's running statistics and its number of batches too.
    assert_equal(states[1], states[0], start)


@pytest.mark.parametrize('kind', ['resnet', 'efficientnet', 'vit'])
@pytest.mark.parametrize('aggregator', [None, dict(type='PCGrad')], ids=['one backward', 'a backward per task'])
def test_another_order_in_memory_trains_the_same_network(kind, aggregator):
    start, model = build(kind).state_dict(), build(kind, channels_last=True)
    assert_equal(train(model, kind, aggregator=aggregator), train(build(kind), kind, aggregator=aggregator), start)
    kernels = [parameter for parameter in model.encoder.parameters() if parameter.ndim == 4 and parameter.shape[1] > 1]
    assert kernels and all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    levels = model.encoder(make_images(range(2), SIZE, torch.float64))
    assert kind == 'vit' or levels.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
@pytest.mark.parametrize('encoder', ENCODERS, ids=lambda encoder: encoder.name)
def test_checkpointing_of_each_encoder_keeps_gradients_and_saves_memory(encoder):
    if not encoder.checkpointing:
        with pytest.raises(ValueError, match=f'no activation checkpointing for {encoder.name!r}'):
            TimmEncoder(**encoder.arguments, grad_checkpointing=True)
        return
    images = make_images(range(2), encoder.size)
    torch.manual_seed(0)
    plain = TimmEncoder(**encoder.arguments)
    other = TimmEncoder(**encoder.arguments, grad_checkpointing=True)
    other.load_state_dict(plain.state_dict())
    assert saved_bytes(other, images) < 0.9 * saved_bytes(plain, images)
    for model in (plain, other):
        torch.manual_seed(1)
        levels = model(images)
        sum(level.square().mean() for level in ([levels] if isinstance(levels, torch.Tensor) else levels)).backward()
    for (name, expected), found in zip(plain.named_parameters(), other.parameters(), strict=True):
        scale = float(expected.grad.abs().max())
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-5 * scale, msg=name)
    for (name, expected), found in zip(plain.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(found, expected, msg=name)


def test_a_copy_of_a_checkpointed_encoder_keeps_its_own_statistics():
    model = build('resnet', grad_checkpointing=True)
    assert_equal(
        train(copy.deepcopy(model), 'resnet'), train(build('resnet'), 'resnet'), start=build('resnet').state_dict()
    )
    fresh = build('resnet').state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ('kind', 'checkpointing'), [('resnet', True), ('convnext', True), ('resnet', False), ('tokens', False)]
)
def test_a_compiled_encoder_trains_the_same_network(kind, checkpointing):
    start = build(kind).state_dict()
    torch._dynamo.reset()
    compiled = build(kind, compile=dict(backend='aot_eager'), grad_checkpointing=checkpointing)
    # A backward per task must be allowed for in what was compiled before.
    for aggregator in (None, dict(type='PCGrad')):
        compiled.load_state_dict(start)
        assert_equal(
            train(compiled, kind, aggregator=aggregator), train(build(kind), kind, aggregator=aggregator), start
        )


def test_the_eager_backend_is_for_encoders_without_checkpointing():
    state = train(build('resnet', compile=dict(backend='eager')), 'resnet')
    assert_equal(state, train(build('resnet'), 'resnet'), build('resnet').state_dict())
    with pytest.raises(ValueError, match="backend 'eager' repeats checkpointed layers"):
        build('resnet', compile=dict(backend='eager'), grad_checkpointing=True)


def test_compile_hands_the_encoder_to_its_backend():
    graphs = []
    compiled = build('vit', compile=dict(backend=lambda graph, inputs: graphs.append(graph) or graph.forward))
    compiled.encoder(make_images(range(2), SIZE, torch.float64))
    assert graphs


def test_the_whole_model_stays_refused():
    model = build('resnet', compile=dict(backend='eager'))
    model.compile(backend='eager')
    with pytest.raises(RuntimeError, match='the whole model is compiled'):
        train(model, 'resnet')


@pytest.mark.slow
@pytest.mark.skipif(shutil.which('g++') is None, reason="torch.compile's inductor needs the compiler g++")
@pytest.mark.parametrize('kind', ['resnet', 'tokens'])
def test_inductor_trains_the_same_network(kind):
    # The second method finds the first one's kernels in the cache, where a backward per task must be allowed for.
    for aggregator in (None, dict(type='PCGrad')):
        torch._dynamo.reset()
        state = train(build(kind, compile=True), kind, aggregator=aggregator)
        assert_equal(state, train(build(kind), kind, aggregator=aggregator), build(kind).state_dict())


def train_under_ddp(rank: int) -> list[dict]:
    states, start = [], build('resnet').state_dict()
    for options in ({}, dict(grad_checkpointing=True, compile=dict(backend='aot_eager'))):
        inner = build('resnet', **options)
        for find_unused in (False, True):
            inner.load_state_dict(start)
            model = DistributedDataParallel(inner, find_unused_parameters=find_unused)
            states.append(train(model, 'resnet', indices=range(4 * rank, 4 * rank + 4)))
            del model
            gc.collect()  # with the hooks that it left on the parameters
    return states


@pytest.mark.slow
def test_two_processes_train_the_same_network_with_both():
    ranks = run_processes(train_under_ddp)
    start = build('resnet').state_dict()
    parameters = dict(build('resnet').named_parameters())
    for states in ranks:
        for state in states[1:]:
            assert_equal(state, states[0], start)
    for name in parameters:
        assert torch.equal(ranks[0][0][name], ranks[1][0][name])


def test_options_of_the_command_line():
    cfg = load_config(TINY, encoder_checkpointing=True, compile_encoder='aot_eager')
    assert cfg.model.encoder.grad_checkpointing is True and cfg.model.encoder.compile == dict(backend='aot_eager')
    assert not {'grad_checkpointing', 'compile'} & set(load_config(TINY).model.encoder)
    changed = load_config(TINY, encoder_checkpointing=True, cfg_options={'model.encoder.grad_checkpointing': False})
    assert changed.model.encoder.grad_checkpointing is False


def test_a_config_without_encoder_has_no_options_for_it(tmp_path):
    path = tmp_path / 'mmseg.py'
    path.write_text("model = dict(type='EncoderDecoder', backbone=dict(type='ResNet'))\noptim_wrapper = dict()\n")
    with pytest.raises(ValueError, match='--compile-encoder.*has no encoder'):
        load_config(path, compile_encoder='inductor')


@pytest.mark.slow
def test_train_py_trains_with_both_options(tmp_path, monkeypatch):
    options = ('--encoder-checkpointing', '--compile-encoder', 'aot_eager')
    used = []
    forward = Recomputation.forward_pass
    monkeypatch.setattr(Recomputation, 'forward_pass', lambda self: used.append('checkpointing') or forward(self))
    monkeypatch.setattr(torch.nn.Module, 'compile', recorded(torch.nn.Module.compile, used))
    monkeypatch.setenv('LOCAL_RANK', '0')  # the tool sets it
    for name, extra in (('plain', ()), ('both', options)):
        command = ['train.py', TINY, '--work-dir', tmp_path / name, '--seed', 0, *extra]
        command += ['--cfg-options', 'train_cfg.max_epochs=1', f'experiment_name=encoder_options_{name}']
        monkeypatch.setattr(sys, 'argv', [str(part) for part in command])
        runpy.run_path(str(ROOT / 'tools/train.py'), run_name='__main__')
        assert set(used) == ({'checkpointing', 'aot_eager'} if extra else set())
    plain, both = (load_checkpoint(tmp_path / name / 'epoch_1.pth')['state_dict'] for name in ('plain', 'both'))
    assert list(plain) == list(both)
    distance = sum(float((plain[name].double() - both[name].double()).abs().sum()) for name in plain)
    assert distance < 1e-2 * sum(float(value.double().abs().sum()) for value in plain.values())


def recorded(compile, used: list):
    return lambda self, *args, **kwargs: used.append(kwargs.get('backend')) or compile(self, *args, **kwargs)
