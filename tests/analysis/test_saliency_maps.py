"""Saliency maps against autograd and literal C x C matrices, written down anew here."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from mmrepmtl.analysis.saliency_maps import (
    SaliencySettings,
    mirrored_targets,
    saliency_maps,
    similarities,
    token_grid,
)
from mmrepmtl.apis import load_config, train
from mmrepmtl.methods.rep_mtl import cross_task_saliency_alignment, task_saliency_regulation
from mmrepmtl.structures import MultiTaskDataSample
from tests.models.toy import build_model, make_images, make_sample

ROOT = Path(__file__).resolve().parents[2]
TASKS = ('semseg', 'depth', 'normal')
COUNT = 4
SETTINGS = SaliencySettings('encoder')


def batch(missing=()) -> tuple[list[Tensor], list[MultiTaskDataSample]]:
    images = list(make_images(range(COUNT), dtype=torch.float64))
    samples = [make_sample(index, missing=missing, dtype=torch.float64) for index in range(COUNT)]
    return images, samples


def toy(**arguments) -> nn.Module:
    return build_model(TASKS, **arguments).double()


def slow_losses(outputs: dict[str, Tensor], samples) -> dict[str, Tensor]:
    """The mean losses over all valid pixels of the batch, pixel by pixel in the textbook form."""
    semseg = torch.stack([sample.targets['semseg'] for sample in samples])
    depth = torch.stack([sample.targets['depth'] for sample in samples])
    normal = torch.stack([sample.targets['normal'] for sample in samples])
    directions = outputs['normal'] / outputs['normal'].norm(dim=1, keepdim=True)
    return dict(
        semseg=F.cross_entropy(outputs['semseg'], semseg, ignore_index=255),
        depth=(outputs['depth'] - depth).abs()[depth > 0].mean(),
        normal=(1 - (directions * normal).sum(1))[normal.norm(dim=1) > 0].mean(),
    )


def slow_saliency(model: nn.Module, images, samples) -> dict[str, Tensor]:
    """d log L_t / dZ of each task, (B, C, H, W)."""
    z = model.encoder(torch.stack(images)).detach().requires_grad_()
    outputs = {task: head(z, (16, 24)) for task, head in model.heads.items()}
    losses = slow_losses(outputs, samples)
    return {task: torch.autograd.grad(loss.log(), z, retain_graph=True)[0] for task, loss in losses.items()}


def cosine(one: Tensor, other: Tensor) -> float:
    return float((one * other).sum() / (one.norm() * other.norm()))


def test_maps_equal_a_slow_computation():
    model, (images, samples) = toy(), batch()
    expected = slow_saliency(model, images, samples)
    (maps,) = saliency_maps(model, images, samples, SETTINGS)
    assert maps.tasks == TASKS and maps.input_size == (16, 24) and maps.magnitude_TBHW.shape == (3, COUNT, 4, 6)
    for b in range(COUNT):
        for h in range(4):
            for w in range(6):
                magnitudes = [abs(float(expected[task][b, :, h, w].mean())) for task in TASKS]
                for t in range(3):
                    found = maps.magnitude_TBHW[t, b, h, w], maps.ownership_TBHW[t, b, h, w]
                    assert float(found[0]) == pytest.approx(magnitudes[t], rel=1e-9)
                    assert float(found[1]) == pytest.approx(magnitudes[t] / sum(magnitudes), rel=1e-9)
    affinities = {task: torch.stack([x.flatten(1) @ x.flatten(1).T for x in expected[task]]) for task in TASKS}
    anchors = torch.stack([expected[task].mean((2, 3)) for task in TASKS], dim=2)
    anchor_affinities = anchors @ anchors.mT
    for b in range(COUNT):
        for k in range(COUNT):
            assert float(maps.anchor_BB[b, k]) == pytest.approx(cosine(anchor_affinities[b], anchor_affinities[k]))
        for t, task in enumerate(TASKS):
            assert float(maps.affinity_BT[b, t]) == pytest.approx(cosine(anchor_affinities[b], affinities[task][b]))


def test_the_losses_are_those_of_the_batch():
    model, (images, samples) = toy(), batch()
    with torch.no_grad():
        outputs = model.raw_outputs(torch.stack(images))
    expected = {task: float(loss) for task, loss in slow_losses(outputs, samples).items()}
    (maps,) = saliency_maps(model, images, samples, SETTINGS)
    assert maps.losses == pytest.approx(expected, rel=1e-6)


def test_without_the_log_the_saliency_is_that_of_the_loss():
    model, (images, samples) = toy(), batch()
    (logged,) = saliency_maps(model, images, samples, SETTINGS)
    (plain,) = saliency_maps(model, images, samples, SETTINGS._replace(transform=None))
    for t, task in enumerate(TASKS):
        assert torch.allclose(plain.magnitude_TBHW[t], logged.losses[task] * logged.magnitude_TBHW[t], rtol=1e-6)


def test_entropy_and_similarities_are_those_that_the_penalty_is_made_of():
    model, (images, samples) = toy(), batch()
    (maps,) = saliency_maps(model, images, samples, SETTINGS)
    saliency_TBCHW = torch.stack(list(slow_saliency(model, images, samples).values()))
    tsr = float(task_saliency_regulation(saliency_TBCHW))
    assert maps.entropy == pytest.approx(tsr / np.log(3), rel=1e-9)
    assert -float((maps.ownership_TBHW * maps.ownership_TBHW.log()).sum(0).mean()) == pytest.approx(tsr, rel=1e-9)
    assert torch.allclose(maps.share_T, maps.ownership_TBHW.mean((1, 2, 3)))
    negatives = maps.anchor_BB.masked_fill(torch.eye(COUNT, dtype=torch.bool), -torch.inf).logsumexp(1)
    csa = float((negatives[:, None] - maps.affinity_BT).mean())
    assert csa == pytest.approx(float(cross_task_saliency_alignment(saliency_TBCHW)), rel=1e-9)


@pytest.mark.parametrize('shape', [(2, 3, 5, 4), (3, 2, 2, 9)])
def test_similarities_equal_the_literal_form_at_any_scale(shape):
    saliency = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    affinity_TBCC = saliency @ saliency.mT
    anchor_BCT = saliency.mean(3).permute(1, 2, 0)
    anchor_BCC = anchor_BCT @ anchor_BCT.mT
    for scale in (1.0, 1e-12):
        anchors, affinities = similarities(scale * saliency)
        for b in range(shape[1]):
            for k in range(shape[1]):
                assert float(anchors[b, k]) == pytest.approx(cosine(anchor_BCC[b], anchor_BCC[k]))
            for t in range(shape[0]):
                assert float(affinities[b, t]) == pytest.approx(cosine(anchor_BCC[b], affinity_TBCC[t, b]))


def test_an_unlabelled_task_has_no_saliency_there():
    model, (images, samples) = toy(), batch()
    del samples[1].gt.depth
    (maps,) = saliency_maps(model, images, samples, SETTINGS)
    assert maps.magnitude_TBHW[1, 1].abs().max() == 0 and maps.magnitude_TBHW[1, 0].min() > 0
    assert torch.allclose(maps.ownership_TBHW[:, 1].sum(0), torch.ones(4, 6, dtype=torch.float64))
    assert maps.affinity_BT[1].isnan().tolist() == [False, True, False]
    (nowhere,) = saliency_maps(model, *batch(missing=['depth']), SETTINGS)
    assert nowhere.magnitude_TBHW[1].abs().max() == 0 and nowhere.losses['depth'] == 0


def test_the_model_is_left_as_it_was():
    model, (images, samples) = toy(), batch()
    model.heads['depth'].decoder.layers.append(nn.Dropout(0.9))
    model.train()
    first, second = (saliency_maps(model, images, samples, SETTINGS)[0] for _ in range(2))
    assert torch.equal(first.magnitude_TBHW, second.magnitude_TBHW)  # no dropout: evaluation mode
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    assert not model.encoder._forward_hooks and set(samples[0].targets) >= set(TASKS)
    assert 'pad_shape' not in samples[0]


def test_images_of_unequal_size_are_padded_with_their_targets():
    model = toy()
    images = [make_images([0], (32, 24), torch.float64)[0], make_images([1], (8, 20), torch.float64)[0]]
    samples = [make_sample(0, (32, 24), dtype=torch.float64), make_sample(1, (8, 20), dtype=torch.float64)]
    (maps,) = saliency_maps(model, images, samples, SETTINGS)
    assert maps.input_size == (32, 24) and maps.magnitude_TBHW.shape[2:] == (8, 6)
    # The last row with a label, 7 of 32, reads the output's rows 1 and 2, and these Z up to row 3.
    assert maps.magnitude_TBHW[:, 1, 4:].max() == 0 and maps.magnitude_TBHW[:, 1, :2].min() > 0


class TwoLevels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.channels = [4, 6]
        self.first, self.second = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 6, 3, 2, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        shallow = self.first(images).tanh()
        return shallow, self.second(shallow).tanh()


def test_each_level_has_its_maps_and_deeper_ones_do_not_add_to_shallower_ones():
    model = toy(encoder=TwoLevels())
    model.heads['depth'].decoder.in_index = 0
    model.heads['depth'].decoder.layers[0] = nn.Conv2d(4, 8, 3, padding=1).double()
    shallow, deep = saliency_maps(model, *batch(), SETTINGS)
    assert shallow.magnitude_TBHW.shape[2:] == (8, 12) and deep.magnitude_TBHW.shape[2:] == (4, 6)
    assert [float(level.max()) > 0 for level in shallow.magnitude_TBHW] == [False, True, False]
    assert [float(level.max()) > 0 for level in deep.magnitude_TBHW] == [True, False, True]


class Tokens(nn.Module):
    """A class token, then the patches as tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = [6]
        self.patches = nn.Conv2d(3, 6, 4, 4)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).mT.tanh()
        return torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1)


def test_tokens_are_laid_out_as_the_patches_of_the_image():
    model = toy(encoder=Tokens())

    def as_map(module, args):
        tokens, size = args
        return tokens[:, 1:].mT.unflatten(2, (4, 6)), size

    for head in model.heads.values():
        head.register_forward_pre_hook(as_map)
    settings = SaliencySettings('encoder', layout='NLC', num_prefix_tokens=1)
    (maps,) = saliency_maps(model, *batch(), settings)
    # The same network with a map in place of tokens.
    plain = toy()
    plain.encoder = nn.Sequential(model.encoder.patches, nn.Tanh())
    for task in TASKS:
        plain.heads[task].load_state_dict(model.heads[task].state_dict())
    (expected,) = saliency_maps(plain, *batch(), SETTINGS)
    assert torch.allclose(maps.magnitude_TBHW, expected.magnitude_TBHW)
    assert token_grid(24, (16, 24)) == (4, 6)
    with pytest.raises(ValueError, match='25 tokens are no grid of square patches of an image of 16 x 24'):
        token_grid(25, (16, 24))


def test_what_has_no_maps_is_refused():
    images, samples = batch()
    model = toy()
    with pytest.raises(ValueError, match="shared='backbone' names no module"):
        saliency_maps(model, images, samples, SaliencySettings('backbone'))
    model.encoder_forward = 'per_task'
    with pytest.raises(ValueError, match="encoder_forward='per_task': each task has samples of its own"):
        saliency_maps(model, images, samples, SETTINGS)
    vector = build_model(('kind', 'pose')).double()
    vector.encoder = nn.Sequential(vector.encoder, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match='without positions'):
        saliency_maps(vector, images, samples, SETTINGS)


def test_settings_are_those_of_the_config():
    cfg = load_config(ROOT / 'configs/synth_rooms/quickstart.py')
    assert SaliencySettings.of(cfg) == SaliencySettings('encoder', 'log', 'NCHW', 0)
    cfg.optim_wrapper.shared = 'neck'
    rep_mtl = dict(type='RepMTL', layout='NLC', num_prefix_tokens=2, saliency_transform=None)
    cfg.optim_wrapper.regularizers = [rep_mtl]
    assert SaliencySettings.of(cfg) == SaliencySettings('neck', None, 'NLC', 2)
    cfg.optim_wrapper.regularizers = []
    assert SaliencySettings.of(cfg) == SaliencySettings('neck')


# ---- without ground truth --------------------------------------------------------------------------------------------


def test_a_models_own_prediction_is_a_target_without_saliency_but_its_mirrored_one_is_not():
    """Why the stand-in is the prediction on the mirrored image."""
    model = toy()
    images = list(make_images(range(2), dtype=torch.float64))
    model.heads['depth'].decoder.layers[-1].bias.data.fill_(2)  # positive, so valid
    own = []
    for sample in model.test_step(dict(inputs=images, data_samples=[MultiTaskDataSample() for _ in images])):
        target = MultiTaskDataSample()
        for task, value in sample.predictions.items():
            target.set_target(task, value)
        own.append(target)
    (flat,) = saliency_maps(model, images, own, SETTINGS._replace(transform=None))
    assert flat.magnitude_TBHW[0].max() > 1e-4 and flat.magnitude_TBHW[1:].max() < 1e-12
    with pytest.raises(ValueError, match="the loss of task 'depth' is 0, and the saliency of a log loss"):
        saliency_maps(model, images, own, SETTINGS)
    meta = dict(semseg=dict(kind='segmentation'), depth=dict(kind='depth'), normal=dict(kind='normals'))
    (maps,) = saliency_maps(model, images, mirrored_targets(model, images, meta), SETTINGS)
    assert (maps.magnitude_TBHW.amax((2, 3)) > 0).all()


def test_mirrored_targets_are_turned_back():
    tasks = ('semseg', 'depth', 'normal', 'kind', 'pose')
    model = build_model(tasks)
    image = make_images([0])[0]
    meta = dict(
        semseg=dict(kind='segmentation'),
        depth=dict(kind='depth'),
        normal=dict(kind='normals'),
        kind=dict(kind='classification'),
        pose=dict(kind='regression'),
    )
    (target,) = mirrored_targets(model, [image], meta)
    with torch.no_grad():
        (seen,) = model.test_step(dict(inputs=[image.flip(-1)], data_samples=[MultiTaskDataSample()]))
    assert torch.equal(target.targets['semseg'], seen.predictions['semseg'].flip(-1))
    assert torch.equal(target.targets['depth'], seen.predictions['depth'].flip(-1))
    right, into, up = seen.predictions['normal'].flip(-1)
    assert torch.equal(target.targets['normal'], torch.stack([-right, into, up]))
    assert target.targets['kind'] == seen.predictions['kind'].argmax()
    assert torch.equal(target.targets['pose'], seen.predictions['pose'])


# ---- the tool --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> list[Path]:
    """Checkpoints of a run with Rep-MTL and of one without."""
    files = []
    for name in ('rep-mtl', 'ew-log'):
        work_dir = tmp_path_factory.mktemp(name)
        options = {'train_cfg.max_epochs': 1, 'train_dataloader.dataset.num_samples': 4}
        options |= {'experiment_name': f'saliency_{name}', 'model.encoder.out_indices': (1,)}
        cfg = load_config(ROOT / 'tests/tools/tiny.py', method=name, work_dir=str(work_dir), cfg_options=options)
        train(cfg)
        files.append(work_dir / 'epoch_1.pth')
    return files


def run_tool(monkeypatch, *arguments) -> None:
    options = ['--device', 'cpu', '--cfg-options', 'model.encoder.out_indices=(1,)']
    tool = ROOT / 'tools/analysis_tools/show_saliency.py'
    command = [str(part) for part in (tool, ROOT / 'tests/tools/tiny.py', *arguments, *options)]
    monkeypatch.setattr(sys, 'argv', command)
    runpy.run_path(str(tool), run_name='__main__')


def test_the_tool_compares_two_checkpoints_on_indices_and_files(trained, tmp_path, monkeypatch, capsys):
    array = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / 'mine.png')
    out = tmp_path / 'sheet.png'
    images = ['val:0,5', 'train:2', tmp_path / 'mine.png']
    run_tool(monkeypatch, trained[0], *images, '--compare', trained[1], '--out', out)
    sheet, printed = np.asarray(Image.open(out)), capsys.readouterr().out
    assert sheet.shape[1] > 1400 and sheet.std() > 20
    lines = [line for line in printed.splitlines() if 'entropy / ln T' in line]
    assert lines[0].startswith('EqualWeighting of log losses + RepMTL (csa 0.9, tsr 0.9): ')
    assert lines[1].startswith('EqualWeighting of log losses: ew-log') and 'shares semseg 0.' in lines[1]
    run_tool(monkeypatch, trained[0], 'test:1', '--out', tmp_path / 'one.png')
    assert 'negative none (one image)' in capsys.readouterr().out
    with pytest.raises(SystemExit, match="val:9: the split 'val' has 7 images, so there is no 9"):
        run_tool(monkeypatch, trained[0], 'val:9')


def test_the_checkpoint_says_what_it_was_trained_with(trained):
    state = torch.load(trained[0], weights_only=False)
    signature = json.loads(state['optimizer']['multi_task']['signature'])
    assert signature['regularizers'][0]['type'] == 'RepMTL' and signature['loss_transform'] == 'log'
