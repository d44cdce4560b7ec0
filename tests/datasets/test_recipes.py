"""The recipes of the benchmarks, setting by setting, as the paper and its baselines' public code have them."""

from pathlib import Path

import pytest
import torch

from mmrepmtl.apis import load_config
from mmrepmtl.registry import MODELS

ROOT = Path(__file__).resolve().parents[2]
IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
HALVED = [dict(type='MultiStepLR', milestones=[100], gamma=0.5, by_epoch=True)]
DENSE = dict(encoder=('resnet50.tv_in1k', 8), shared='encoder', normalised=False, epochs=200, schedule=HALVED)
DOMAINS = dict(encoder=('resnet18.tv_in1k', 32), shared='neck', normalised=True, epochs=100, schedule=[], batch=64)
# Config, by the paper or (PASCAL-Context, GTA5) by this repository, and what it must say.
PAPER = {
    'nyuv2/rep-mtl_resnet50-d8_deeplab_b8-200e_nyuv2-288x384': DENSE
    | dict(batch=8, size=(288, 384), tasks=('semseg', 'depth', 'normal')),
    'cityscapes/rep-mtl_resnet50-d8_deeplab_b64-200e_cityscapes-128x256': DENSE
    | dict(batch=64, size=(128, 256), tasks=('semseg', 'depth')),
    'office31/rep-mtl_resnet18-per-task_b64-100e_office31-224': DOMAINS
    | dict(size=(224, 224), tasks=('amazon', 'dslr', 'webcam')),
    'office_home/rep-mtl_resnet18-per-task_b64-100e_office-home-224': DOMAINS
    | dict(size=(224, 224), tasks=('Art', 'Clipart', 'Product', 'Real_World')),
}
OTHERS = (
    'pascal_context/rep-mtl_resnet50-d8_deeplab_b8-60e_pascal-context-512x512',
    'gta5_cityscapes/rep-mtl_resnet50-d8_deeplab_b32-50e_gta5-cityscapes-128x256',
)
CONFIGS = sorted((ROOT / 'configs').glob('[!_]*/*.py'))


def config(name, **kwargs):
    return load_config(ROOT / f'configs/{name}.py', **kwargs)


@pytest.mark.parametrize('name', [*PAPER, *OTHERS])
def test_the_method_and_its_optimizer(name):
    wrapper = config(name).optim_wrapper
    assert wrapper.optimizer == dict(type='Adam', lr=1e-4, weight_decay=1e-5)
    assert wrapper.loss_transform == 'log' and wrapper.aggregator is None
    assert wrapper.weighting == dict(type='EqualWeighting')
    (regularizer,) = wrapper.regularizers
    own = dict(shared_samples=False) if config(name).model.get('encoder_forward', 'shared') != 'shared' else {}
    assert regularizer == dict(type='RepMTL', lambda_tsr=0.9, lambda_csa=0.9) | own


@pytest.mark.parametrize('path', [path for path in CONFIGS if 'resnet18-' in path.stem and 'b64-100e' not in path.stem])
def test_the_small_ones_have_a_penalty_of_bounded_strength(path):
    (regularizer,) = load_config(path).optim_wrapper.regularizers
    assert (regularizer.target_ratio, regularizer.through) == (0.05, 'representation')
    assert load_config(path, 'rep-mtl-paper').optim_wrapper.regularizers == [
        dict(type='RepMTL', lambda_tsr=0.9, lambda_csa=0.9)
    ]


@pytest.mark.parametrize('name', PAPER)
def test_the_schedule_the_batches_and_the_network(name):
    cfg, expected = config(name), PAPER[name]
    assert (cfg.train_cfg.max_epochs, cfg.param_scheduler) == (expected['epochs'], expected['schedule'])
    loader = cfg.train_dataloader
    assert loader.batch_size == expected['batch'] and loader.sampler.shuffle
    assert loader.get('drop_last') or loader.batch_sampler == dict(type='DomainBatchSampler', drop_last=True)
    assert tuple(cfg.model.heads) == expected['tasks'] and cfg.optim_wrapper.shared == expected['shared']
    encoder = cfg.model.encoder
    assert (encoder.name, encoder.get('output_stride', 32)) == expected['encoder']
    # Its ImageNet weights are an argument, so that nothing is downloaded unasked.
    assert encoder.pretrained is False and 'checkpoint' not in encoder
    preprocessor = cfg.model.data_preprocessor
    found = {key: tuple(preprocessor[key]) for key in ('mean', 'std') if key in preprocessor}
    assert found == (IMAGENET if expected['normalised'] else {})
    decoders = [head.get('decoder', {}).get('type') for head in cfg.model.heads.values()]
    assert set(decoders) == ({'DeepLabDecoder'} if expected['shared'] == 'encoder' else {None})
    if expected['shared'] == 'neck':
        assert cfg.model.encoder_forward == 'per_task'
        neck = cfg.model.neck
        assert (neck.type, neck.out_channels, neck.dropout) == ('GlobalPoolNeck', 512, 0.5)


@pytest.mark.parametrize('name', PAPER)
def test_images_have_the_size_of_the_paper_and_are_not_augmented(name):
    cfg, expected = config(name), PAPER[name]
    for split in ('train', 'val', 'test'):
        resize, pack = cfg[f'{split}_dataloader'].dataset.pipeline
        assert (resize.type, tuple(resize['size']), pack.type) == (
            'ResizeMultiTask',
            expected['size'],
            'PackMultiTaskInputs',
        )


@pytest.mark.parametrize('name', [*PAPER, *OTHERS])
def test_metrics_are_over_all_pixels_and_each_task_has_one(name):
    cfg = config(name)
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        assert [metric.task for metric in evaluator] and {m.task for m in evaluator} == set(cfg.model.heads)
        assert all(metric.get('reduction', 'pixel') == 'pixel' for metric in evaluator)


@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name in PAPER if 'resnet50' in name])
def test_the_networks_have_the_paper_s_number_of_parameters(name):
    model = MODELS.build(config(name).model)

    def millions(part):
        return round(sum(parameter.numel() for parameter in part.parameters()) / 1e6, 1)

    assert millions(model.encoder) == 23.5
    assert {task: millions(head) for task, head in model.heads.items()} == dict.fromkeys(PAPER[name]['tasks'], 16.1)
    height, width = PAPER[name]['size']
    with torch.no_grad():
        shape = model.eval().represent(torch.zeros(1, 3, height, width)).shape
    assert shape == (1, 2048, height // 8, width // 8)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_method_goes_over_every_config(path):
    """Whatever the overlay, the data, the network, its shared module and the optimizer stay."""
    own = load_config(path)
    for method in ('ew', 'ew-log', 'uw', 'pcgrad', 'rep-mtl-tsr', 'stl'):
        cfg = load_config(path, method)
        for key in ('model', 'train_dataloader', 'val_dataloader', 'test_evaluator', 'train_cfg', 'param_scheduler'):
            assert cfg[key] == own[key]
        assert cfg.optim_wrapper.shared == own.optim_wrapper.shared
        assert cfg.optim_wrapper.optimizer == own.optim_wrapper.optimizer
        assert cfg.optim_wrapper.loss_transform == ('log' if method in ('ew-log', 'rep-mtl-tsr') else None)
