import pickle

import pytest
import timm
import torch

from mmrepmtl.models import TimmEncoder
from mmrepmtl.registry import MODELS


def test_levels_and_their_description_agree():
    encoder = MODELS.build(dict(type='TimmEncoder', name='test_resnet', out_indices=(1, 2, -1)))
    levels = encoder(torch.rand(2, 3, 64, 96))
    assert isinstance(levels, tuple)
    assert [level.shape[1] for level in levels] == encoder.channels == encoder.num_features
    assert [64 // level.shape[2] for level in levels] == encoder.reductions
    single = TimmEncoder('test_resnet', in_chans=4)
    assert single(torch.rand(2, 4, 64, 96)).shape == (2, single.channels[0], 2, 3)


@pytest.mark.parametrize('stride', [8, 16, 32])
def test_output_stride(stride):
    encoder = TimmEncoder('test_resnet', output_stride=stride)
    assert encoder.reductions == [stride]
    assert encoder(torch.rand(1, 3, 64, 64)).shape[-1] == 64 // stride


def test_channels_last_models_return_channels_first():
    encoder = TimmEncoder('swin_tiny_patch4_window7_224', out_indices=(0,), model_args=dict(img_size=64, embed_dim=24))
    assert encoder(torch.rand(1, 3, 64, 64)).shape == (1, 24, 16, 16)
    assert encoder.channels == [24]


def test_vision_transformers_return_maps():
    encoder = TimmEncoder('test_vit', model_args=dict(img_size=(64, 96)))
    assert encoder(torch.rand(1, 3, 64, 96)).shape == (1, *encoder.channels, 4, 6)


@pytest.mark.parametrize(
    ('name', 'suffix'),
    [
        ('test_resnet', '.pth'),
        ('test_convnext', '.pth'),
        ('test_vit', '.pth'),
        ('test_efficientnet', '.pth'),
        ('test_resnet', '.safetensors'),
    ],
)
def test_a_local_checkpoint_gives_the_classifier_s_features(name, suffix, tmp_path):
    torch.manual_seed(0)
    source = timm.create_model(name, pretrained=False).eval()
    path = tmp_path / f'weights{suffix}'
    if suffix == '.safetensors':
        from safetensors.torch import save_file

        save_file(source.state_dict(), path)
    else:
        torch.save({'state_dict': {f'module.{key}': value for key, value in source.state_dict().items()}}, path)
    torch.manual_seed(1)
    encoder = TimmEncoder(name, checkpoint=path).eval()
    images = torch.rand(1, 3, 160, 160)
    expected = source.forward_intermediates(images, indices=1, intermediates_only=True, norm=False)[-1]
    torch.testing.assert_close(encoder(images), expected)


def test_a_checkpoint_that_does_not_fit_is_named_with_its_keys(tmp_path):
    path = tmp_path / 'partial.pth'
    weights = timm.create_model('test_resnet', pretrained=False).state_dict()
    removed = next(key for key in weights if key.startswith('layer2') and key.endswith('weight'))
    torch.save({key: value for key, value in weights.items() if key != removed} | {'stray': torch.ones(1)}, path)
    with pytest.raises(ValueError) as error:
        TimmEncoder('test_resnet', checkpoint=path)
    assert all(part in str(error.value) for part in ('partial.pth', removed, 'stray'))


def test_missing_keys_are_found_where_timm_is_lenient(tmp_path):
    path = tmp_path / 'partial.pth'
    weights = timm.create_model('test_efficientnet', pretrained=False).state_dict()
    del weights['blocks.1.0.conv_exp.weight']
    torch.save(weights, path)
    with pytest.raises(ValueError, match='partial.pth.*missing keys.*blocks.1.0.conv_exp.weight'):
        TimmEncoder('test_efficientnet', checkpoint=path)


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


def test_a_checkpoint_that_runs_code_is_refused(tmp_path):
    path, trace = tmp_path / 'evil.pth', tmp_path / 'trace'
    torch.save(dict(state_dict=dict(a=torch.ones(1)), payload=Payload(trace)), path)
    with pytest.raises(ValueError, match='evil.pth is refused: it holds io.open'):
        TimmEncoder('test_resnet', checkpoint=path)
    assert not trace.exists()


def test_files_that_are_no_checkpoints(tmp_path):
    with pytest.raises(ValueError, match='there is no checkpoint .*absent.pth'):
        TimmEncoder('test_resnet', checkpoint=tmp_path / 'absent.pth')
    (tmp_path / 'text.pth').write_text('no weights')
    with pytest.raises(ValueError, match='text.pth is damaged or no checkpoint'):
        TimmEncoder('test_resnet', checkpoint=tmp_path / 'text.pth')
    (tmp_path / 'text.safetensors').write_text('no weights')
    with pytest.raises(ValueError, match='text.safetensors'):
        TimmEncoder('test_resnet', checkpoint=tmp_path / 'text.safetensors')
    (tmp_path / 'list.pth').write_bytes(pickle.dumps([1, 2], protocol=2))
    with pytest.raises(ValueError, match='list.pth'):
        TimmEncoder('test_resnet', checkpoint=tmp_path / 'list.pth')
    torch.save(dict(epoch=3), tmp_path / 'empty.pth')
    with pytest.raises(ValueError, match='empty.pth holds no state dict'):
        TimmEncoder('test_resnet', checkpoint=tmp_path / 'empty.pth')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(name='test_resnat'), 'did you mean.*test_resnet'),
        (dict(name='test_vit', output_stride=8), "cannot build 'test_vit'.*output_stride"),
        (dict(name='test_resnet', out_indices=(9,)), r"cannot build 'test_resnet'.*\(9,\)"),
        (dict(name='test_resnet', pretrained=True, checkpoint='x.pth'), 'not both'),
    ],
)
def test_impossible_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        TimmEncoder(**arguments)
