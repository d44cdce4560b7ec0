"""The model of a run, and the way of a picture into the network."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from mmrepmtl.apis import MultiTaskInferencer, load_config, train
from mmrepmtl.apis.image_pipeline import ImagePipeline
from tests.apis.toy import CONFIG, ROOT, picture, same


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> Path:
    """The work directory of a real run."""
    work_dir = tmp_path_factory.mktemp('trained')
    options = {'train_cfg.max_epochs': 1, 'train_dataloader.dataset.num_samples': 4, 'experiment_name': 'inferencer'}
    train(load_config(ROOT / 'tests/tools/tiny.py', work_dir=str(work_dir), cfg_options=options))
    return work_dir


def test_a_work_directory_means_its_config_and_last_checkpoint(trained, tmp_path):
    array = picture((40, 50))
    expected = MultiTaskInferencer(ROOT / 'tests/tools/tiny.py', trained / 'epoch_1.pth', device='cpu')(array)[0]
    assert expected.network_size == (24, 32)
    moved = tmp_path / 'moved'
    shutil.copytree(trained, moved)
    (moved / 'last_checkpoint').write_text('/nowhere/epoch_1.pth')
    for folder in (trained, moved):
        inferencer = MultiTaskInferencer(folder, device='cpu')
        assert inferencer.checkpoint == folder / 'epoch_1.pth'
        assert inferencer.targets_meta['semseg']['classes'][0] == 'wall'
        assert same(inferencer(array)[0].predictions, expected.predictions)


@pytest.mark.parametrize('note', [b'', b'\xff\xfe', b'/nowhere/epoch_9.pth', b'x' * 5000, None])
def test_a_damaged_last_checkpoint_leaves_the_newest_whole_one(trained, tmp_path, note):
    folder = tmp_path / 'run'
    shutil.copytree(trained, folder)
    (folder / 'last_checkpoint').unlink()
    if note is not None:
        (folder / 'last_checkpoint').write_bytes(note)
    assert MultiTaskInferencer(folder, device='cpu').checkpoint == folder / 'epoch_1.pth'
    shutil.copy(folder / 'epoch_1.pth', folder / 'epoch_2.pth')
    (folder / 'epoch_2.pth').write_bytes((folder / 'epoch_1.pth').read_bytes()[:1000])
    (folder / 'last_checkpoint').write_text('epoch_2.pth')
    assert MultiTaskInferencer(folder, device='cpu').checkpoint == folder / 'epoch_1.pth'


def test_what_is_missing_in_a_work_directory_is_said(run, trained, tmp_path):
    with pytest.raises(FileNotFoundError, match='there is no config or work directory nowhere.py'):
        MultiTaskInferencer('nowhere.py', run[1])
    with pytest.raises(ValueError, match='a config file needs a checkpoint'):
        MultiTaskInferencer(run[0])
    with pytest.raises(FileNotFoundError, match='there is no config in this work directory'):
        MultiTaskInferencer(tmp_path)
    shutil.copy(run[0], tmp_path / 'one.py')
    with pytest.raises(FileNotFoundError, match='there is no checkpoint in this work directory'):
        MultiTaskInferencer(tmp_path)
    shutil.copy(run[0], tmp_path / 'two.py')
    with pytest.raises(ValueError, match=r'2 configs in this work directory \(one.py, two.py\)'):
        MultiTaskInferencer(tmp_path)
    with pytest.raises(ValueError, match='does not fit the model of the config'):
        MultiTaskInferencer(run[0], trained / 'epoch_1.pth')


def test_a_checkpoint_with_code_is_refused_unless_trusted(run, tmp_path):
    state = torch.load(run[1], weights_only=True)
    torch.save(state | dict(extra=torch.nn.Identity()), tmp_path / 'code.pth')
    with pytest.raises(ValueError, match='code.pth is refused: it holds torch.nn.modules.linear.Identity'):
        MultiTaskInferencer(run[0], tmp_path / 'code.pth', device='cpu')
    assert MultiTaskInferencer(run[0], tmp_path / 'code.pth', device='cpu', trust_checkpoint=True)


def test_pretrained_weights_of_the_config_are_not_looked_for(run, tmp_path):
    text = CONFIG.replace('checkpoint=None', "checkpoint='/nowhere/imagenet.pth'")
    (tmp_path / 'config.py').write_text(text)
    assert MultiTaskInferencer(tmp_path / 'config.py', run[1], device='cpu')


def test_targets_come_from_the_data_set_where_the_checkpoint_has_none(trained, tmp_path):
    state = torch.load(trained / 'epoch_1.pth', weights_only=False)
    torch.save(dict(state_dict=state['state_dict'], meta={}), tmp_path / 'bare.pth')
    inferencer = MultiTaskInferencer(trained, tmp_path / 'bare.pth', device='cpu')
    assert inferencer.targets_meta['semseg']['classes'][0] == 'wall'


# ---- the pipeline ----------------------------------------------------------------------------------------------------


def pipeline_of(*transforms, override=None, **dataset) -> ImagePipeline:
    config = load_config(ROOT / 'tests/tools/tiny.py')
    pipeline = [*transforms, dict(type='PackMultiTaskInputs')]
    config.test_dataloader.dataset = dict(type='SynthRoomsDataset', pipeline=pipeline, **dataset)
    return ImagePipeline(config, override)


RESIZE, PAD = dict(type='ResizeMultiTask', size=(20, 40)), dict(type='PadMultiTask', size=(32, 48))


@pytest.mark.parametrize(
    'pipeline, network, content',
    [
        (pipeline_of(), (30, 50), (30, 50)),
        (pipeline_of(size=(16, 24)), (16, 24), (16, 24)),
        (pipeline_of(RESIZE), (20, 40), (20, 40)),
        (pipeline_of(RESIZE, PAD), (32, 48), (20, 40)),
        (pipeline_of(RESIZE, PAD, size=(8, 8)), (32, 48), (20, 40)),
        (pipeline_of(RESIZE, PAD, size=(8, 8), override=(16, 24)), (32, 48), (16, 24)),
    ],
)
def test_the_size_is_that_of_the_config(pipeline, network, content):
    prepared = pipeline(picture((30, 50)).astype(np.float32) / 255)
    assert tuple(prepared.inputs.shape[1:]) == network and prepared.content == content


def test_a_picture_is_resized_once():
    img = picture((30, 50)).astype(np.float32) / 255
    both, one = (pipeline(img).inputs for pipeline in (pipeline_of(RESIZE, size=(8, 8)), pipeline_of(RESIZE)))
    assert torch.equal(both, one)


def test_padding_is_cut_off_before_predictions_are_resized(run):
    padded = MultiTaskInferencer(*run, device='cpu')
    padded.pipeline = pipeline_of(RESIZE, PAD)
    array = picture((20, 40))
    with torch.no_grad():
        inputs = padded.pipeline(array.astype(np.float32) / 255).inputs
        raw = padded.model.raw_outputs((inputs[None] - 0.5) / 0.25)
    found = padded(array)[0].predictions
    assert np.allclose(found['depth'], raw['depth'][0, :, :20, :40], atol=1e-5)


def test_a_pipeline_that_cannot_be_undone_is_refused(run):
    with pytest.raises(ValueError, match='RandomFlip, which is random'):
        pipeline_of(dict(type='RandomFlip'))
    backwards = pipeline_of(dict(type='PadMultiTask', size=(64, 64)), RESIZE)
    with pytest.raises(ValueError, match='by ResizeMultiTask .* cannot be undone'):
        backwards(picture((30, 50)).astype(np.float32) / 255)
    config = load_config(ROOT / 'tests/tools/tiny.py')
    parts = dict(a=dict(pipeline=[RESIZE]), b=dict(pipeline=[]))
    config.test_dataloader.dataset = dict(datasets=parts, pipeline=[dict(type='PackMultiTaskInputs')])
    with pytest.raises(ValueError, match='domains of the test data set have different pipelines'):
        ImagePipeline(config)
    parts['b'] = parts['a']
    config.test_dataloader.dataset = dict(datasets=parts, pipeline=[dict(type='PackMultiTaskInputs')])
    assert ImagePipeline(config)(picture((30, 50)).astype(np.float32) / 255).content == (20, 40)


def test_a_config_without_a_size_is_said(run, tmp_path, lines):
    (tmp_path / 'config.py').write_text(CONFIG.replace('size=(24, 32), ', ''))
    inferencer = MultiTaskInferencer(tmp_path / 'config.py', run[1], device='cpu')
    assert len(lines) == 1 and 'the config names no size of the network input' in lines[0]
    assert MultiTaskInferencer(tmp_path / 'config.py', run[1], device='cpu', size=(24, 32)) and len(lines) == 1
    assert inferencer(picture((40, 48)))[0].network_size == (40, 48)
