"""The quickstart's config learns: a twelfth of its training, from its ImageNet weights and from random ones."""

import pytest

from mmrepmtl.apis import evaluate, load_config, train
from tests.models.weights_package import needs_package

OPTIONS = {
    'train_dataloader.dataset.num_samples': 320,
    'train_cfg.max_epochs': 1,
    'train_cfg.val_interval': 9,
    'param_scheduler.1.T_max': 1,
    'test_dataloader.dataset.num_samples': 40,
}


def tested(folder, **options) -> dict[str, float]:
    """The test metrics of a short training on one thread."""
    options = OPTIONS | {f'{split}_dataloader.num_workers': 0 for split in ('train', 'val', 'test')} | options
    options |= {f'{split}_dataloader.persistent_workers': False for split in ('train', 'val', 'test')}
    cfg = load_config('synth_rooms/quickstart', work_dir=str(folder), cfg_options=options, seed=0)
    cfg.experiment_name = folder.name
    train(cfg)
    cfg.experiment_name += '_test'
    return evaluate(cfg, folder / 'epoch_1.pth', constant=False)['metrics']


@needs_package
@pytest.mark.slow
def test_it_learns_from_few_images_what_a_random_encoder_does_not(tmp_path):
    pretrained = tested(tmp_path / 'pretrained')
    random = tested(tmp_path / 'random', **{'model.encoder.pretrained': False})
    print(pretrained, random)
    assert pretrained['semseg/mIoU'] > 20 > random['semseg/mIoU']
    assert pretrained['normal/mean'] < 30 < random['normal/mean']
