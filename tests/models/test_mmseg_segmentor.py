"""A multi-task model as an mmseg segmentor: the same numbers, also from windows and from flipped copies."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

pytest.importorskip('mmseg', reason='mmseg is not installed')

from mmrepmtl.mmseg import MultiTaskSegmentor, MultiTaskTTAModel
from mmrepmtl.models import MultiTaskModel
from mmrepmtl.registry import MODELS
from mmrepmtl.structures import MultiTaskDataSample
from tests.models.mmseg_samples import (
    FIELDS,
    PREPROCESSOR,
    all_predictions,
    assert_same,
    collate,
    expected,
    heads,
    labelled,
    packed,
    pair,
    picture,
)
from tests.models.toy import NUM_CLASSES, PlainEncoder, head_configs


def test_mmseg_pipelines_give_the_predictions_of_ours():
    """BGR in [0, 255] against normalised RGB in [0, 1]."""
    model, segmentor = pair()
    image = picture()
    with torch.no_grad():
        sample = segmentor.test_step(collate([packed(image)]))[0]
    assert_same(sample, expected(model, image))
    assert set(sample.keys()) == {f'pred_{field}' for field in FIELDS.values()} | {'seg_logits'}
    assert torch.equal(sample.seg_logits.data.argmax(0), sample.pred_sem_seg.data[0])
    assert sample.pred_sem_seg.data.dtype == torch.int64 and sample.pred_normal_map.data.shape == (3, 16, 24)


def test_predictions_have_the_original_size():
    model, segmentor = pair()
    image = picture()
    with torch.no_grad():
        sample = segmentor.test_step(collate([packed(image, ori_shape=(31, 50))]))[0]
    assert_same(sample, expected(model, image, size=(31, 50)))


def test_padding_is_cut_off():
    """size_divisor pads in evaluation, too; the network sees the padding, the predictions do not show it."""
    settings = dict(data_preprocessor=dict(PREPROCESSOR, size_divisor=16))
    torch.manual_seed(0)
    model = MODELS.build(dict(type='MultiTaskModel', encoder=PlainEncoder(), heads=heads(), **settings)).eval()
    segmentor = MultiTaskSegmentor(PlainEncoder(), heads(), **settings).eval()
    segmentor.load_state_dict(model.state_dict())
    image = picture((20, 24))
    with torch.no_grad():
        sample = segmentor.test_step(collate([packed(image)]))[0]
    assert_same(sample, expected(model, image))


def test_losses_are_those_of_the_multi_task_model_also_in_padded_batches():
    """mmseg pads depth with 255 and leaves unknown fields alone; neither may count."""
    model, segmentor = pair()
    items = [labelled(picture((16, 24), 0), 0, without=('edge',)), labelled(picture((12, 20), 1), 1)]
    theirs = segmentor.data_preprocessor(collate([item for item, _ in items]), training=True)
    assert (theirs['data_samples'][1].gt_depth_map.data[0, 12:] == 255).all()  # metres, to whom does not know
    assert theirs['data_samples'][1].gt_normal_map.data.shape == (3, 12, 20)
    found = segmentor(**theirs, mode='loss')
    wanted = model(**model.data_preprocessor(collate([item for _, item in items]), training=True), mode='loss')
    assert set(found) == set(wanted) and {'semseg.loss_ce', 'depth.loss_l1', 'normal.loss_cos'} <= set(found)
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6)


# ---- windows ----


class Pointwise(nn.Module):
    """Looks at one pixel at a time: what lies around a window cannot matter."""

    channels = [6]

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 6, 1)

    def forward(self, images):
        return self.layer(images).tanh()


def pointwise(test_cfg):
    torch.manual_seed(3)
    linear = dict(type='ConvDecoder', num_convs=0)
    configs = {task: dict(config, decoder=linear) for task, config in heads().items()}
    return MultiTaskSegmentor(Pointwise(), configs, test_cfg=test_cfg).eval()


@pytest.mark.parametrize(
    'windows', [dict(crop_size=(16, 24), stride=(16, 24)), dict(crop_size=(32, 32), stride=(8, 8))]
)
def test_one_window_is_the_whole_image(windows):
    whole, slide = pair(test_cfg=dict(mode='slide', **windows))[1], pair()[1]
    image = picture()
    for task, value in all_predictions(slide, image).items():
        assert torch.equal(all_predictions(whole, image)[task], value), task


def test_windows_that_overlap_agree_with_the_whole_where_context_does_not_matter():
    whole = pointwise(dict(mode='whole'))
    slide = pointwise(dict(mode='slide', crop_size=(9, 10), stride=(5, 7)))
    calls = []
    slide.encoder.register_forward_hook(lambda module, args, output: calls.append(args[0].shape[-2:]))
    image = picture((20, 30))
    wanted = all_predictions(whole, image)
    for task, value in all_predictions(slide, image).items():
        torch.testing.assert_close(value, wanted[task], rtol=1e-4, atol=1e-5)
    assert len(calls) > 8 and set(calls) == {(9, 10)}


# ---- flips ----


class Slopes(nn.Module):
    """Brightness, its slope to the right and its slope upwards: a mirrored image has mirrored features, with signs."""

    channels = [3]

    def forward(self, images):
        grey = images.mean(1, keepdim=True)
        right = torch.roll(grey, -1, 3) - torch.roll(grey, 1, 3)
        up = torch.roll(grey, 1, 2) - torch.roll(grey, -1, 2)
        return torch.cat([right, grey, up], dim=1)


def equivariant():
    """Each output a function of features that do not change their sign, but for the two components of normals."""
    torch.manual_seed(4)
    linear = dict(type='ConvDecoder', num_convs=0)
    configs = {task: dict(config, decoder=linear) for task, config in heads().items()}
    segmentor = MultiTaskSegmentor(Slopes(), configs)
    with torch.no_grad():
        for task, head in segmentor.heads.items():
            last = head.decoder.layers[0]
            last.weight[:, ::2] = 0
            last.bias.normal_()
            if task == 'normal':
                last.weight.copy_(torch.eye(3)[:, :, None, None])
                last.bias.zero_()
    return segmentor.eval()


def flips(image, *directions):
    """A batch as mmseg's test-time augmentation makes it: one entry for each copy."""
    copies = []
    for direction in directions:
        flipped = {None: image, 'horizontal': image[:, ::-1], 'vertical': image[::-1]}[direction]
        copies.append(packed(flipped.copy(), flip=direction is not None, flip_direction=direction))
    return {key: [[copy[key]] for copy in copies] for key in copies[0]}


@pytest.mark.parametrize('direction', ['horizontal', 'vertical'])
def test_a_flipped_image_gives_the_predictions_of_the_image(direction):
    segmentor, image = equivariant(), picture()
    wanted = all_predictions(segmentor, image)
    batch = {key: value[0] for key, value in flips(image, direction).items()}
    with torch.no_grad():
        sample = segmentor.test_step(batch)[0]
    for task, field in FIELDS.items():
        torch.testing.assert_close(sample.get(f'pred_{field}').data, wanted[task], rtol=1e-4, atol=1e-5)
    assert wanted['normal'][0].abs().mean() > 0.05 and wanted['normal'][2].abs().mean() > 0.05


def test_flip_augmentation_of_an_equivariant_model_is_the_plain_prediction():
    segmentor, image = equivariant(), picture()
    wanted = all_predictions(segmentor, image)
    with torch.no_grad():
        merged = MultiTaskTTAModel(module=segmentor).test_step(flips(image, None, 'horizontal', 'vertical'))[0]
    for task, field in FIELDS.items():
        torch.testing.assert_close(merged.get(f'pred_{field}').data, wanted[task], rtol=1e-4, atol=1e-5)


def test_augmentation_averages_every_task():
    _, segmentor = pair()
    image = picture()
    with torch.no_grad():
        merged = MultiTaskTTAModel(module=segmentor).test_step(flips(image, None, 'horizontal'))[0]
        plain, flipped = (
            segmentor.test_step({key: value[0] for key, value in flips(image, direction).items()})[0]
            for direction in (None, 'horizontal')
        )
    depth = (plain.pred_depth_map.data + flipped.pred_depth_map.data) / 2
    torch.testing.assert_close(merged.pred_depth_map.data, depth)
    assert (depth - flipped.pred_depth_map.data).abs().max() > 1e-3
    normal = nn.functional.normalize(plain.pred_normal_map.data + flipped.pred_normal_map.data, dim=0)
    torch.testing.assert_close(merged.pred_normal_map.data, normal, rtol=1e-4, atol=1e-5)
    probability = (plain.seg_logits.data.softmax(0) + flipped.seg_logits.data.softmax(0)) / 2
    assert torch.equal(merged.pred_sem_seg.data[0], probability.argmax(0))
    torch.testing.assert_close(merged.seg_logits.data.softmax(0), probability)
    torch.testing.assert_close(merged.pred_edge.data, (plain.pred_edge.data + flipped.pred_edge.data) / 2)


def test_mmsegs_own_augmentation_gives_the_same_segmentation():
    from mmseg.models import SegTTAModel

    _, segmentor = pair()
    image = picture()
    with torch.no_grad():
        theirs = SegTTAModel(module=segmentor).test_step(flips(image, None, 'horizontal'))[0]
        merged = MultiTaskTTAModel(module=segmentor).test_step(flips(image, None, 'horizontal'))[0]
    assert torch.equal(theirs.pred_sem_seg.data.squeeze(), merged.pred_sem_seg.data[0])


def test_a_flip_that_cannot_be_undone_is_an_error():
    _, segmentor = pair()
    with pytest.raises(ValueError, match="flip_direction='diagonal'"):
        segmentor.test_step(collate([packed(picture(), flip=True, flip_direction='diagonal')]))


def test_training_with_rep_mtl_through_mmsegs_samples():
    """The optim wrapper finds tasks and Z by the same names as in MultiTaskModel."""
    from mmrepmtl.engine import MultiTaskOptimWrapper

    steps = []
    for network, position in zip(pair(preprocessor=None), (1, 0), strict=True):
        items = [labelled(picture(seed=i), i)[position] for i in range(4)]
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        wrapper = MultiTaskOptimWrapper(
            optimizer, shared='encoder', loss_transform='log', regularizers=[dict(type='RepMTL')]
        )
        log = network.train().train_step(collate(items), wrapper)
        steps.append((network.state_dict(), log))
    (ours_after, our_log), (theirs_after, their_log) = steps
    assert set(our_log) == set(their_log) and 'rep_mtl/csa' in our_log
    for key, value in ours_after.items():
        assert torch.equal(theirs_after[key], value), key


# ---- errors ----


def test_what_cannot_work_is_one_clear_error():
    with pytest.raises(ValueError, match=r"task 'kind' \(ClassificationHead\) has no map"):
        MultiTaskSegmentor(PlainEncoder(), head_configs(('semseg', 'kind')))
    _, segmentor = pair()
    with pytest.raises(ValueError, match='not MultiTaskDataSample'):
        segmentor.predict(torch.rand(1, 3, 16, 24), [MultiTaskDataSample()])
    with pytest.raises(ValueError, match='not MultiTaskDataSample'):
        segmentor.loss(torch.rand(1, 3, 16, 24), [MultiTaskDataSample()])
    with pytest.raises(ValueError, match='needs data_samples'):
        segmentor(torch.rand(1, 3, 16, 24), mode='loss')
    with pytest.raises(ValueError, match='pretrained='):
        MultiTaskSegmentor(PlainEncoder(), heads(), pretrained='x.pth')


def test_it_is_a_segmentor_and_a_multi_task_model():
    from mmseg.models import BaseSegmentor

    model, segmentor = pair()
    assert isinstance(segmentor, BaseSegmentor) and isinstance(segmentor, MultiTaskModel)
    assert list(segmentor.state_dict()) == list(model.state_dict()) and segmentor.tasks == model.tasks
    assert segmentor.with_decode_head and not segmentor.with_neck and not segmentor.with_auxiliary_head
    assert segmentor.decode_head is segmentor.heads['semseg'] and segmentor.num_classes == NUM_CLASSES
    maps = segmentor(torch.rand(2, 3, 16, 24))
    assert {task: tuple(value.shape) for task, value in maps.items()} == dict(
        semseg=(2, 5, 16, 24), depth=(2, 1, 16, 24), normal=(2, 3, 16, 24), edge=(2, 1, 16, 24)
    )


def test_plain_names_in_its_config_are_found_under_mmsegs_scope():
    config = Config(dict(encoder=dict(type='TimmEncoder', name='test_resnet'), heads=heads()))
    with DefaultScope.overwrite_default_scope('mmseg'):
        from mmseg.registry import MODELS as MMSEG_MODELS

        built = MMSEG_MODELS.build(dict(type='MultiTaskSegmentor', **config))
    assert isinstance(built, MultiTaskSegmentor)
