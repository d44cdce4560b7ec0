"""mmengine's own ways to load a checkpoint, with files that hold code, and with ordinary ones."""

import functools
import http.server
import threading
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.infer import BaseInferencer
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModule
from mmengine.runner import load_checkpoint as mmengine_load_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader, _load_checkpoint, _load_checkpoint_with_prefix
from torch import nn

from mmrepmtl.engine.schemes import disarm_config_texts, register_schemes
from mmrepmtl.utils.checkpoint import CheckpointError, read_checkpoint, trust_checkpoints
from tests.utils.payloads import config_text, hostile


class Net(BaseModule):
    """A module with a part that has an init_cfg of its own."""

    def __init__(self, part: dict | None = None, init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        self.part = Part(init_cfg=part)


class Part(BaseModule):
    def __init__(self, init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        self.linear = nn.Linear(2, 2)


@pytest.fixture
def evil(tmp_path) -> tuple[str, Path]:
    """A checkpoint of Net with a payload, and what the payload writes."""
    marker = tmp_path / 'marker'
    return str(hostile(tmp_path / 'evil.pth', marker, state_dict=Net().state_dict(), meta={})), marker


def _init(**settings) -> None:
    Net(**settings).init_weights()


LOADS = {
    'load_checkpoint': lambda file: mmengine_load_checkpoint(Net(), file),
    '_load_checkpoint': lambda file: _load_checkpoint(file),
    'prefix': lambda file: _load_checkpoint_with_prefix('part', file),
    'loader': lambda file: CheckpointLoader.load_checkpoint(file, 'cpu'),
    'init_cfg': lambda file: _init(init_cfg=dict(type='Pretrained', checkpoint=file)),
    'init_cfg of a part': lambda file: _init(part=dict(type='Pretrained', checkpoint=file, prefix='part')),
}


@pytest.mark.parametrize('way', LOADS)
def test_mmengine_refuses_code_and_loads_it_where_it_is_trusted(evil, way):
    file, marker = evil
    with pytest.raises(CheckpointError, match='evil.pth is refused: it holds os.makedirs'):
        LOADS[way](file)
    assert not marker.exists()
    with trust_checkpoints():
        LOADS[way](file)
    assert marker.exists()


def test_mmengine_loads_what_is_data(tmp_path):
    source = Net()
    log = dict(log_scalars=dict(loss=HistoryBuffer([1.0], [1])), runtime_info=dict(epoch=1, keep_ckpt_ids=[3, '/../x']))
    torch.save(dict(state_dict=source.state_dict(), message_hub=log, meta={}), tmp_path / 'a.pth')
    model = Net(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth')))
    model.init_weights()
    assert torch.equal(model.part.linear.weight, source.part.linear.weight)
    read = _load_checkpoint(str(tmp_path / 'a.pth'))
    assert read['message_hub']['log_scalars']['loss'].mean() == 1
    # CheckpointHook makes names of files that it deletes from these.
    assert read['message_hub']['runtime_info']['keep_ckpt_ids'] == [3]
    assert isinstance(read['state_dict'], OrderedDict) and read['state_dict']._metadata


def test_mmengine_names_a_damaged_and_an_absent_file(tmp_path):
    torch.save(Net().state_dict(), tmp_path / 'a.pth')
    content = bytearray((tmp_path / 'a.pth').read_bytes())
    content[content.index(b'part.linear')] ^= 1
    (tmp_path / 'a.pth').write_bytes(content)
    with pytest.raises(CheckpointError, match='a.pth is damaged .*: the checksum of its record a/data.pkl'):
        mmengine_load_checkpoint(Net(), str(tmp_path / 'a.pth'))
    with pytest.raises(FileNotFoundError, match='there is no checkpoint'):
        mmengine_load_checkpoint(Net(), str(tmp_path / 'b.pth'))


def test_loaders_that_others_registered_stay(tmp_path):
    CheckpointLoader.register_scheme('mine://', lambda filename, map_location: filename)
    try:
        register_schemes()
        assert CheckpointLoader.load_checkpoint('mine://a') == 'mine://a'
    finally:
        del CheckpointLoader._schemes['mine://']


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The address of a folder, and torch.hub's own folder for what is downloaded."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    monkeypatch.setattr(handler.func, 'log_message', lambda *_: None)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as service:
        thread = threading.Thread(target=service.serve_forever)
        thread.start()
        monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
        monkeypatch.setenv('no_proxy', '127.0.0.1')
        yield f'http://127.0.0.1:{service.server_port}'
        service.shutdown()
        thread.join()


def test_what_comes_from_an_address_is_data_too(evil, tmp_path, server, monkeypatch):
    marker = evil[1]
    weights = Net().state_dict()
    torch.save(weights, tmp_path / 'good.pth')
    assert torch.equal(_load_checkpoint(f'{server}/good.pth')['part.linear.bias'], weights['part.linear.bias'])
    module = 'mmrepmtl.engine.schemes.mmengine_checkpoint'
    monkeypatch.setattr(f'{module}.get_torchvision_models', lambda: dict(net=f'{server}/evil.pth'))
    monkeypatch.setattr(f'{module}.get_mmcls_models', lambda: dict(net=f'{server}/evil.pth'))
    monkeypatch.setattr(f'{module}.get_external_models', lambda: dict(net=f'{server}/evil.pth'))
    for name in (f'{server}/evil.pth', 'torchvision://net', 'open-mmlab://net', 'openmmlab://net', 'mmcls://net'):
        with pytest.raises(CheckpointError, match='evil.pth is refused: it holds os.makedirs'):
            _load_checkpoint(name)
    monkeypatch.setattr(
        'mmrepmtl.engine.schemes.get_file_backend',
        lambda *_, **__: type('Store', (), dict(get=lambda self, name: (tmp_path / 'evil.pth').read_bytes()))(),
    )
    with pytest.raises(CheckpointError, match='evil.pth is refused: it holds os.makedirs'):
        _load_checkpoint('s3://bucket/evil.pth')
    assert not marker.exists()


class Inferencer(BaseInferencer):
    """The least that mmengine asks of one."""

    def _init_pipeline(self, cfg):
        return lambda inputs: inputs

    def visualize(self, *args, **kwargs): ...

    def postprocess(self, *args, **kwargs): ...


@pytest.mark.parametrize('place', ['meta', 'message_hub'])
def test_an_inferencer_without_a_config_evaluates_none_of_the_checkpoint(tmp_path, place):
    marker, text = tmp_path / 'marker', config_text(tmp_path / 'marker')
    content = dict(state_dict={}, meta=dict(cfg=text))
    if place == 'message_hub':
        content['message_hub'] = dict(log_scalars={}, resumed_keys={}, runtime_info=dict(cfg=text))
    torch.save(content, tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='a.pth is code and is not evaluated; give the config file'):
        Inferencer(weights=str(tmp_path / 'a.pth'), device='cpu', scope='mmengine')
    assert not marker.exists()


@pytest.mark.parametrize(
    'text',
    [
        'open({marker!r}, "w")',
        '# coding: utf-7\n+AG8AcABlAG4-({marker!r}, "w")',
        '_base_ = [open({marker!r}, "w").name]',
        'a = 1\ropen({marker!r}, "w")\x0copen({marker!r}, "w")\u2028open({marker!r}, "w")',
        "'''\nopen({marker!r}, 'w')\n'''",
        '{{{{$ENV:NOWHERE:\nopen({marker!r}, "w")}}}}',
        '{{{{{{fileDirname}}}}}}\nopen({marker!r}, "w")',
        'with read_base():\n    open({marker!r}, "w")',
        '# The config of a run, as comments.\n\nopen({marker!r}, "w")',
    ],
)
def test_no_text_gets_out_of_the_comments(tmp_path, text):
    marker = tmp_path / 'marker'
    text = text.format(marker=str(marker))
    content = disarm_config_texts(dict(meta=dict(cfg=text)), "it's {{a}}.pth")
    with pytest.raises(ValueError, match='is code and is not evaluated'):
        Config.fromstring(content['meta']['cfg'], '.py')
    assert not marker.exists()
    again = disarm_config_texts(content, 'b.pth')['meta']['cfg']
    with pytest.raises(ValueError, match='b.pth is code and is not evaluated'):
        Config.fromstring(again, '.py')


def test_what_is_no_checkpoint_of_mmengine_passes_unchanged(tmp_path):
    torch.save(torch.ones(2), tmp_path / 'a.pth')
    assert torch.equal(_load_checkpoint(str(tmp_path / 'a.pth')), torch.ones(2))
    torch.save(dict(meta=[1], message_hub='x'), tmp_path / 'a.pth')
    assert _load_checkpoint(str(tmp_path / 'a.pth')) == read_checkpoint(tmp_path / 'a.pth')


def test_the_model_cloud_whose_loader_unpickles_is_refused():
    with pytest.raises(CheckpointError, match='pavi://a/b.pth is refused: mmengine unpickles'):
        _load_checkpoint('pavi://a/b.pth')
