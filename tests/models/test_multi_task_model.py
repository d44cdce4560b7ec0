import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import DefaultScope, Registry
from torch import nn

import mmrepmtl.models  # noqa: F401  registers the models
from mmrepmtl.registry import MODELS

from .toy import ALL_TASKS, PlainEncoder, build_model, head_configs, make_images, make_sample

TERMS = dict(semseg='ce', depth='l1', normal='cos', kind='ce', pose='mse')


def test_losses_are_means_over_labels():
    model = build_model().double()
    samples = [make_sample(0, dtype=torch.float64), make_sample(3, missing=['depth', 'kind'], dtype=torch.float64)]
    images = make_images([0, 3], dtype=torch.float64)
    losses = model(images, samples, mode='loss')
    assert list(losses) == [f'{task}.loss_{TERMS[task]}' for task in ALL_TASKS] + [
        f'{task}.labelled' for task in ALL_TASKS
    ]
    outputs = model(images, mode='tensor')
    for task in ALL_TASKS:
        ((numerator, count),) = model.heads[task].loss_terms(outputs[task], samples).values()
        assert losses[f'{task}.loss_{TERMS[task]}'].item() == pytest.approx((numerator / count).item(), rel=1e-12)
        assert losses[f'{task}.labelled'] == 1


def test_the_loss_weight_scales_the_loss():
    losses = []
    for weight in (1.0, 2.5):
        heads = head_configs(['depth'])
        heads['depth']['loss_weight'] = weight
        torch.manual_seed(0)
        model = MODELS.build(dict(type='MultiTaskModel', encoder=PlainEncoder(), heads=heads))
        losses.append(model(make_images([0]), [make_sample(0)], mode='loss')['depth.loss_l1'].item())
    assert losses[1] == pytest.approx(2.5 * losses[0])


@pytest.mark.parametrize('task', ALL_TASKS)
def test_each_head_trains_through_mmengine(task):
    model = build_model([task])
    wrapper = OptimWrapper(torch.optim.Adam(model.parameters(), lr=1e-2))
    samples = [make_sample(0), make_sample(1)]
    for sample in samples:  # a step, a ramp and a plane can be learned
        sample.set_target('semseg', (torch.arange(24) // 12).expand(16, 24).contiguous())
        sample.set_target('depth', torch.linspace(1, 2, 24).expand(1, 16, 24).contiguous())
        sample.set_target('normal', torch.tensor([0.6, 0.0, 0.8])[:, None, None].expand(3, 16, 24).contiguous())
    data = dict(inputs=list(make_images([0, 1])), data_samples=samples)
    history = [model.train_step(data, wrapper)['loss'].item() for _ in range(20)]
    assert history[-1] < 0.5 * history[0]


def test_an_unlabelled_task_gets_zero_gradients_that_are_not_none():
    model = build_model()
    samples = [make_sample(index, missing=['normal', 'kind']) for index in range(2)]
    losses = model(make_images([0, 1]), samples, mode='loss')
    for task in ALL_TASKS:
        absent = task in ('normal', 'kind')
        assert losses[f'{task}.labelled'].item() == (not absent)
        assert losses[f'{task}.loss_{TERMS[task]}'].requires_grad
        assert (losses[f'{task}.loss_{TERMS[task]}'].item() == 0) == absent
    sum(value for key, value in losses.items() if 'loss' in key).backward()
    for task in ALL_TASKS:
        for parameter in model.heads[task].parameters():
            assert parameter.grad is not None
            assert parameter.grad.isfinite().all()
        magnitude = sum(parameter.grad.abs().sum().item() for parameter in model.heads[task].parameters())
        assert (magnitude == 0) == (task in ('normal', 'kind'))


def test_a_label_that_is_void_everywhere_counts_as_none():
    model = build_model(['semseg'])
    sample = make_sample(0)
    sample.set_target('semseg', torch.full((16, 24), 255))
    losses = model(make_images([0]), [sample], mode='loss')
    assert losses['semseg.loss_ce'] == losses['semseg.labelled'] == 0


def test_an_unlabelled_sample_changes_nothing_for_the_others():
    model = build_model(['depth']).double()
    images = make_images([0, 1], dtype=torch.float64)
    samples = [make_sample(0, dtype=torch.float64), make_sample(1, missing=['depth'], dtype=torch.float64)]
    both = model(images, samples, mode='loss')['depth.loss_l1']
    alone = model(images[:1], samples[:1], mode='loss')['depth.loss_l1']
    assert both.item() == pytest.approx(alone.item(), rel=1e-12)


def test_padding_does_not_change_the_number_of_valid_pixels():
    model = build_model(['semseg', 'depth', 'normal'])
    sizes = [(10, 20), (16, 12)]
    samples = [make_sample(index, size) for index, size in enumerate(sizes)]
    images = [make_images([index], size)[0] for index, size in enumerate(sizes)]
    data = model.data_preprocessor(dict(inputs=images, data_samples=samples), training=True)
    outputs = model(**data, mode='tensor')
    for task, head in model.heads.items():
        ((numerator, count),) = head.loss_terms(outputs[task], data['data_samples']).values()
        cut = [head.loss_terms(outputs[task][i : i + 1, :, :h, :w], [samples[i]]) for i, (h, w) in enumerate(sizes)]
        assert count == sum(next(iter(terms.values()))[1] for terms in cut)
        torch.testing.assert_close(numerator, sum(next(iter(terms.values()))[0] for terms in cut))


def test_predictions_come_with_meta_information_and_truth():
    model = build_model().eval()
    sizes = [(10, 20), (16, 12)]
    samples = [make_sample(index, size) for index, size in enumerate(sizes)]
    images = [make_images([index], size)[0] for index, size in enumerate(sizes)]
    with torch.no_grad():
        results = model.val_step(dict(inputs=images, data_samples=samples))
    for index, (result, size) in enumerate(zip(results, sizes, strict=True)):
        assert result.sample_idx == index
        assert set(result.predictions) == set(result.targets) == set(ALL_TASKS)
        assert result.predictions['semseg'].shape == result.targets['semseg'].shape == size
        assert result.predictions['depth'].shape == (1, *size)
        assert set(result.to_dict()) >= {'gt', 'pred'}
        assert not samples[index].predictions
    assert [tuple(r.predictions['normal'].shape) for r in model(make_images([0, 1]), mode='predict')] == [
        (3, 16, 24)
    ] * 2


def test_predicting_again_replaces_nothing_in_earlier_results():
    model = build_model(['depth']).eval()
    first = model(make_images([0]), [make_sample(0)], mode='predict')
    value = first[0].predictions['depth'].clone()
    model(make_images([1]), first, mode='predict')
    assert torch.equal(first[0].predictions['depth'], value)


def test_modes_and_missing_samples_are_checked():
    model = build_model(['depth'])
    with pytest.raises(ValueError, match="'train'"):
        model(make_images([0]), mode='train')
    with pytest.raises(ValueError, match='needs data_samples'):
        model(make_images([0]), mode='loss')


@pytest.mark.parametrize('name', ['a.b', 'a/b', 'lossy', 'keys', 'training', 'forward', 'metainfo_keys', 'to', ''])
def test_task_names_that_would_be_misread_are_refused(name):
    with pytest.raises(ValueError, match='task name.*cannot be used'):
        MODELS.build(dict(type='MultiTaskModel', encoder=PlainEncoder(), heads={name: head_configs()['depth']}))


def test_a_model_needs_heads_and_an_encoder_that_tells_its_channels():
    with pytest.raises(ValueError, match='heads is empty'):
        MODELS.build(dict(type='MultiTaskModel', encoder=PlainEncoder(), heads={}))
    with pytest.raises(ValueError, match='Identity has no attribute `channels`'):
        MODELS.build(dict(type='MultiTaskModel', encoder=nn.Identity(), heads=head_configs(['depth'])))


def config(**encoder) -> Config:
    return Config(
        dict(
            model=dict(
                type='MultiTaskModel',
                data_preprocessor=dict(
                    type='MultiTaskDataPreprocessor', mean=[0.5] * 3, std=[0.2] * 3, size_divisor=32
                ),
                encoder=dict(type='TimmEncoder', name='test_resnet', **encoder),
                heads=head_configs(),
            )
        )
    )


def test_a_config_builds_and_trains_and_initialisation_needs_no_download():
    torch.manual_seed(0)
    model = MODELS.build(config(output_stride=8).model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.init_weights()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.tasks == ALL_TASKS
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-2))
    data = dict(inputs=list(make_images([0, 1])), data_samples=[make_sample(0), make_sample(1)])
    log = model.train_step(data, wrapper)
    assert log['loss'].item() == pytest.approx(
        sum(value.item() for key, value in log.items() if '.loss_' in key), rel=1e-5
    )


def test_a_model_can_be_built_in_another_project_s_scope():
    Registry('model', parent=MMENGINE_MODELS, scope='elsewhere')
    with DefaultScope.overwrite_default_scope('elsewhere'):
        model = MMENGINE_MODELS.build(
            dict(
                type='mmrepmtl.MultiTaskModel',
                encoder=dict(type='mmrepmtl.TimmEncoder', name='test_resnet'),
                heads=dict(
                    kind=dict(type='mmrepmtl.ClassificationHead', num_classes=4),
                    pose=dict(type='mmrepmtl.RegressionHead'),
                ),
            )
        )
    assert model(torch.rand(1, 3, 64, 64))['kind'].shape == (1, 4)


def test_decoders_of_several_levels_read_their_own():
    settings = config(out_indices=(1, 4))
    settings.model.heads['depth'].decoder = dict(type='ConvDecoder', in_index=0, norm=None)
    model = MODELS.build(settings.model)
    assert model.heads['depth'].decoder.in_channels == model.encoder.channels[0]
    assert model.heads['semseg'].decoder.in_channels == model.encoder.channels[1]
    assert model(torch.rand(1, 3, 64, 64))['depth'].shape == (1, 1, 64, 64)


def test_a_neck_makes_the_representation():
    model = MODELS.build(
        dict(
            type='MultiTaskModel',
            encoder=dict(type='TimmEncoder', name='test_resnet'),
            neck=dict(type='GlobalPoolNeck', out_channels=10),
            heads=head_configs(['kind', 'pose']),
        )
    )
    captured = []
    model.neck.register_forward_hook(lambda module, inputs, output: captured.append(output))
    samples = [make_sample(0), make_sample(1)]
    losses = model(make_images([0, 1], (32, 32)), samples, mode='loss')
    assert captured[0].shape == (2, 10)
    (gradient,) = torch.autograd.grad(losses['kind.loss_ce'], captured[0])
    assert gradient.abs().max() > 0
    assert model.heads['kind'].decoder.in_channels == 10


@pytest.mark.slow
def test_the_paper_s_network():
    deeplab = dict(type='DeepLabDecoder')
    model = MODELS.build(
        dict(
            type='MultiTaskModel',
            encoder=dict(type='TimmEncoder', name='resnet50', output_stride=8),
            heads=dict(
                semseg=dict(type='SegmentationHead', num_classes=13, decoder=deeplab),
                depth=dict(type='DepthHead', decoder=deeplab),
                normal=dict(type='NormalHead', decoder=deeplab),
            ),
        )
    )

    def millions(module):
        return round(sum(parameter.numel() for parameter in module.parameters()) / 1e6, 1)

    assert millions(model.encoder) == 23.5
    assert {task: millions(head) for task, head in model.heads.items()} == dict(semseg=16.1, depth=16.1, normal=16.1)
    dilations = {}
    for name, module in model.encoder.named_modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            layer = next((part for part in name.split('.') if part.startswith('layer')), 'stem')
            dilations.setdefault(layer, []).append(module.dilation[0])
    assert dilations['layer2'] == [1] * 4
    assert dilations['layer3'] == [1] + [2] * 5
    assert dilations['layer4'] == [2, 4, 4]
    model.eval()
    with torch.no_grad():
        images = torch.rand(1, 3, 288, 384)
        assert model.represent(images).shape == (1, 2048, 36, 48)
        outputs = model(images)
    assert {task: tuple(output.shape) for task, output in outputs.items()} == dict(
        semseg=(1, 13, 288, 384), depth=(1, 1, 288, 384), normal=(1, 3, 288, 384)
    )
