"""A stock mmseg segmentor, unchanged: the loss keys of its two heads are two tasks."""

import pytest
import torch

from tests.engine.harness import REP, run, wrap

mmseg_models = pytest.importorskip('mmseg.models', reason='mmseg is not installed')


def segmentor():
    from mmengine.model import revert_sync_batchnorm
    from mmengine.registry import DefaultScope
    from mmseg.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    torch.manual_seed(0)
    norm = dict(type='BN')
    head = dict(type='FCNHead', channels=8, num_convs=1, concat_input=False, dropout_ratio=0, num_classes=3)
    head |= dict(norm_cfg=norm, align_corners=False)
    with DefaultScope.overwrite_default_scope('mmseg'):  # of the losses that mmseg's heads name themselves
        model = mmseg_models.EncoderDecoder(
            data_preprocessor=dict(type='SegDataPreProcessor', size=(32, 32)),
            backbone=dict(type='ResNet', depth=18, base_channels=8, norm_cfg=norm, num_stages=4, out_indices=(2, 3)),
            decode_head=dict(head, in_channels=64, in_index=1),
            auxiliary_head=dict(head, in_channels=32, in_index=0),
        )
    return revert_sync_batchnorm(model)


def batch(size=4):
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    g = torch.Generator().manual_seed(1)
    samples = [SegDataSample(metainfo=dict(img_shape=(32, 32), ori_shape=(32, 32))) for _ in range(size)]
    for sample in samples:
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 3, (1, 32, 32), generator=g))
    return dict(inputs=[torch.rand(3, 32, 32, generator=g) for _ in range(size)], data_samples=samples)


@pytest.mark.parametrize('aggregator', [None, dict(type='PCGrad')])
def test_encoder_decoder_trains_with_rep_mtl(aggregator):
    """Both heads read several levels of the backbone, of which the deeper is computed from the shallower."""
    model = segmentor()
    tasks = dict(semseg='decode.', auxiliary='aux.')
    settings = dict(shared='backbone', tasks=tasks, loss_transform='log', aggregator=aggregator)
    wrapper = wrap(model, lr=0.01, regularizers=[REP], **settings)
    before = {name: p.clone() for name, p in model.named_parameters()}
    log = run(model, wrapper, [batch()])[0]
    assert log['raw/semseg'] > 0 and log['raw/auxiliary'] > 0 and 'decode.acc_seg' in log
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert still == []
