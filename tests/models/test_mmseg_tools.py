"""mmseg's inferencer, its functions and its visualiser on a multi-task model."""

import copy
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import DefaultScope

pytest.importorskip('mmseg', reason='mmseg is not installed')

from mmrepmtl.mmseg import MultiTaskLocalVisualizer
from mmrepmtl.utils.checkpoint import CheckpointError, trust_checkpoints
from mmrepmtl.visualization import colour_depth, colour_normals
from tests.models.mmseg_samples import (
    NUM_CLASSES,
    PREPROCESSOR,
    assert_same,
    collate,
    expected,
    heads,
    labelled,
    pair,
    picture,
)
from tests.utils.payloads import config_text, hostile

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_scope_left():
    """mmseg's tools set the default scope of the process."""
    before = copy.copy(DefaultScope._instance_dict)
    yield
    DefaultScope._instance_dict = before


# ---- mmseg's tools ----


@pytest.fixture
def files(tmp_path):
    """A config for mmseg's tools, the checkpoint of a training with ours, and an image."""
    model, _ = pair()
    classes = ['wall', 'floor', 'bed', 'chair', 'other']
    palette = [[index * 40] * 3 for index in range(NUM_CLASSES)]
    targets = dict(semseg=dict(kind='segmentation', classes=classes, palette=palette), depth=dict(kind='depth'))
    meta = dict(dataset_meta=dict(targets=targets))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), tmp_path / 'epoch_1.pth')
    cv2.imwrite(str(tmp_path / 'room.png'), picture((32, 48)))
    (tmp_path / 'config.py').write_text(f"""
custom_imports = dict(imports=['mmrepmtl', 'mmrepmtl.mmseg', 'tests.models.mmseg_toy'])
default_scope = 'mmseg'
model = dict(type='MultiTaskSegmentor', encoder=dict(type='ToyEncoder'), heads={heads()!r},
             data_preprocessor={PREPROCESSOR!r}, test_cfg=dict(mode='whole'))
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(24, 16), keep_ratio=False),
                 dict(type='PackSegInputs')]
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
visualizer = dict(type='MultiTaskLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer')
""")
    return tmp_path, model, classes, palette


def resized(path) -> np.ndarray:
    return cv2.resize(cv2.imread(str(path)), (24, 16), interpolation=cv2.INTER_LINEAR)


@pytest.mark.parametrize('as_array', [False, True])
def test_init_model_and_inference_model(files, as_array):
    from mmseg.apis import inference_model, init_model

    folder, model, classes, palette = files
    segmentor = init_model(str(folder / 'config.py'), str(folder / 'epoch_1.pth'), device='cpu')
    assert segmentor.dataset_meta == dict(classes=classes, palette=palette)
    image = str(folder / 'room.png')
    sample = inference_model(segmentor, cv2.imread(image) if as_array else image)
    assert_same(sample, expected(model, resized(image), size=(32, 48)))


def test_the_inferencer_predicts_draws_and_writes(files):
    from mmseg.apis import MMSegInferencer

    folder, model, *_ = files
    image = str(folder / 'room.png')
    inferencer = MMSegInferencer(
        str(folder / 'config.py'), str(folder / 'epoch_1.pth'), device='cpu', show_progress=False
    )
    sample = inferencer(image, return_datasamples=True)
    wanted = expected(model, resized(image), size=(32, 48))
    assert_same(sample, wanted)
    result = inferencer([image], out_dir=str(folder / 'out'), return_vis=True)
    assert np.array_equal(result['predictions'], wanted['semseg'].numpy())
    assert result['visualization'].shape == (4 * 32, 48, 3)
    drawn = cv2.imread(str(folder / 'out/vis/room.png'))
    normals = colour_normals(wanted['normal'].numpy())
    assert np.abs(drawn[64:96, :, ::-1].astype(int) - normals).max() <= 2
    assert (folder / 'out/pred/00000000_pred.png').is_file()


def test_mmsegs_tools_run_nothing_from_a_checkpoint(files):
    from mmseg.apis import MMSegInferencer, init_model

    folder, model, *_ = files
    config, marker = str(folder / 'config.py'), folder / 'marker'
    evil = str(hostile(folder / 'evil.pth', marker, state_dict=model.state_dict(), meta=dict(dataset_meta={})))
    with pytest.raises(CheckpointError, match='evil.pth is refused: it holds os.makedirs'):
        MMSegInferencer(config, evil, device='cpu', show_progress=False)
    with pytest.raises(CheckpointError, match='evil.pth is refused: it holds os.makedirs'):
        init_model(config, evil, device='cpu')
    torch.save(dict(state_dict={}, meta=dict(cfg=config_text(marker))), folder / 'text.pth')
    with pytest.raises(ValueError, match='text.pth is code and is not evaluated'):
        MMSegInferencer(None, weights=str(folder / 'text.pth'), device='cpu', show_progress=False)
    assert not marker.exists()
    with trust_checkpoints():
        init_model(config, evil, device='cpu')
    assert marker.exists()


@pytest.fixture
def documented(files, tmp_path):
    """The config of docs/mmseg.md, over a toy instead of a model of NYUv2."""
    folder, model, classes, _ = files
    text = re.findall(r'```python\n(_base_ = .*?)```', (ROOT / 'docs/mmseg.md').read_text(), re.S)[0]
    text = text.replace("['bed', 'books', ...]", repr(classes)).replace('(384, 288)', '(24, 16)')
    text = text.replace("'mmrepmtl.mmseg'", "'mmrepmtl.mmseg', 'tests.models.mmseg_toy'")
    toy = dict(type='MultiTaskModel', encoder=dict(type='ToyEncoder'), heads=heads(), data_preprocessor=PREPROCESSOR)
    (tmp_path / 'my.py').write_text(f'model = {toy!r}\ntest_dataloader = dict(batch_size=8)\n')
    (tmp_path / 'documented.py').write_text(
        text.replace("'mmrepmtl.mmseg'", "'mmrepmtl.mmseg', 'tests.models.mmseg_toy'")
    )
    return tmp_path / 'documented.py', folder, model, classes


def test_the_documented_config_predicts(documented):
    from mmseg.apis import MMSegInferencer, inference_model, init_model

    config, folder, model, classes = documented
    image = str(folder / 'room.png')
    segmentor = init_model(str(config), str(folder / 'epoch_1.pth'), device='cpu')
    wanted = expected(model, resized(image), size=(32, 48))
    assert_same(inference_model(segmentor, image), wanted)
    inferencer = MMSegInferencer(str(config), str(folder / 'epoch_1.pth'), device='cpu', show_progress=False)
    assert_same(inferencer(image, return_datasamples=True), wanted)
    assert inferencer.model.dataset_meta['classes'] == classes


def test_the_documented_pipeline_augments_with_a_flip(documented):
    from mmengine.dataset import Compose, pseudo_collate
    from mmseg.apis import init_model

    config, folder, model, _ = documented
    segmentor = init_model(str(config), str(folder / 'epoch_1.pth'), device='cpu')
    cfg = segmentor.cfg
    batch = pseudo_collate([Compose(cfg.tta_pipeline)(dict(img_path=str(folder / 'room.png')))])
    tta = MMENGINE_MODELS.build(dict(cfg.tta_model, module=segmentor))
    with torch.no_grad():
        merged = tta.test_step(batch)[0]
    image = resized(folder / 'room.png')
    plain, flipped = (expected(model, view, size=(32, 48)) for view in (image, image[:, ::-1].copy()))
    torch.testing.assert_close(
        merged.pred_depth_map.data, (plain['depth'] + flipped['depth'].flip(2)) / 2, rtol=1e-4, atol=1e-5
    )
    mirrored = flipped['normal'].flip(2) * torch.tensor([-1.0, 1, 1])[:, None, None]
    normal = torch.nn.functional.normalize(plain['normal'] + mirrored, dim=0)
    torch.testing.assert_close(merged.pred_normal_map.data, normal, rtol=1e-4, atol=1e-4)


# ---- pictures ----


def test_the_visualizer_draws_truth_beside_prediction():
    _, segmentor = pair()
    image = picture()
    item, _ = labelled(image, 0, without=('edge',))
    with torch.no_grad():
        sample = segmentor.test_step(collate([item]))[0]
    visualizer = MultiTaskLocalVisualizer()
    visualizer.dataset_meta = segmentor.dataset_meta
    visualizer.add_datasample('room', image, sample)
    drawn = visualizer.get_image()
    assert drawn.shape == (4 * 16, 2 * 24, 3)
    truth = sample.gt_depth_map.data.numpy()
    low, high = truth.min(), truth.max()
    depth = np.concatenate(
        [
            colour_depth(truth, low, high),
            colour_depth(sample.pred_depth_map.data.numpy(), low, high, np.ones((16, 24), bool)),
        ],
        axis=1,
    )
    assert np.array_equal(drawn[16:32], depth)
    assert np.array_equal(drawn[32:48, :24], colour_normals(sample.gt_normal_map.data.numpy()))
    visualizer.add_datasample('room', image, sample, draw_gt=False, with_image=True)
    assert visualizer.get_image().shape == (64, 48, 3)
    visualizer.add_datasample('room', image, sample, draw_pred=False)
    assert visualizer.get_image().shape == (48, 24, 3)
    visualizer.add_datasample('room', image, None)
    assert np.array_equal(visualizer.get_image(), image)


def test_classes_of_the_checkpoint_the_config_or_numbers():
    _, segmentor = pair()
    plain = segmentor.dataset_meta
    assert plain['classes'] == [f'class {i}' for i in range(NUM_CLASSES)] and len(plain['palette']) == NUM_CLASSES
    segmentor.dataset_meta = dict(classes=None, palette=None)
    segmentor.dataset_meta = dict(classes=[str(i) for i in range(19)], palette=[[0, 0, 0]] * 19)  # Cityscapes'
    assert segmentor.dataset_meta == plain
    _, named = pair(classes=list('abcde'))
    assert named.dataset_meta['classes'] == list('abcde')
    with pytest.raises(ValueError, match='2 classes and 5 colours for a task of 5 classes'):
        pair(classes=['a', 'b'])
