"""The same network as MultiTaskModel and as MultiTaskSegmentor, and the same sample as ours and as mmseg's."""

import numpy as np
import torch
from mmengine.structures import PixelData
from torch import nn

from mmrepmtl.registry import MODELS
from mmrepmtl.structures import MultiTaskDataSample
from tests.models.toy import NUM_CLASSES, PlainEncoder, head_configs

DENSE = ('semseg', 'depth', 'normal')
FIELDS = dict(semseg='sem_seg', depth='depth_map', normal='normal_map', edge='edge')
PREPROCESSOR = dict(type='MultiTaskDataPreprocessor', mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.25])


def heads():
    conv = dict(type='ConvDecoder', hidden_channels=4, num_convs=1, norm=None)
    return head_configs(DENSE) | dict(edge=dict(type='BinaryHead', decoder=conv))


def pair(preprocessor=PREPROCESSOR, **arguments):
    """The same network as MultiTaskModel and as MultiTaskSegmentor."""
    torch.manual_seed(0)
    settings = dict(heads=heads(), data_preprocessor=preprocessor)
    model = MODELS.build(dict(type='MultiTaskModel', encoder=PlainEncoder(), **settings))
    segmentor = MODELS.build(dict(type='MultiTaskSegmentor', encoder=PlainEncoder(), **settings, **arguments))
    segmentor.load_state_dict(model.state_dict())
    return model.eval(), segmentor.eval()


def picture(size=(16, 24), seed=0) -> np.ndarray:
    """As cv2 reads it: (H, W, 3) BGR in [0, 255]."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def packed(image: np.ndarray, **meta) -> dict:
    """The batch that mmseg's pipelines give the model."""
    from mmseg.datasets.transforms import PackSegInputs

    keys = ('ori_shape', 'img_shape', 'pad_shape', 'flip', 'flip_direction', 'img_path')
    results = dict(img=image, ori_shape=image.shape[:2], img_shape=image.shape[:2], img_path='a.png') | meta
    return PackSegInputs(meta_keys=keys)(results)


def collate(items) -> dict:
    return {key: [item[key] for item in items] for key in items[0]}


def ours(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1) / 255


def expected(model, image, size=None):
    """Predictions of the plain model, at ``size`` where the truth has another one."""
    sample = MultiTaskDataSample(metainfo=dict(img_shape=image.shape[:2]))
    if size is not None:
        sample.set_target('semseg', torch.zeros(size, dtype=torch.int64))
        sample.set_target('depth', torch.zeros(1, *size))
        sample.set_target('normal', torch.zeros(3, *size))
        sample.set_target('edge', torch.zeros(size, dtype=torch.int64))
    with torch.no_grad():
        return model.test_step(dict(inputs=[ours(image)], data_samples=[sample]))[0].predictions


def assert_same(sample, predictions, rtol=1e-4, atol=1e-5):
    for task, value in predictions.items():
        found = sample.get(f'pred_{FIELDS[task]}').data
        torch.testing.assert_close(found, value.reshape(found.shape), rtol=rtol, atol=atol)


def labelled(image, seed, without=()):
    """An mmseg sample with the truth of all tasks, and ours."""
    generator = torch.Generator().manual_seed(seed)
    size = image.shape[:2]
    truth = dict(
        semseg=torch.randint(0, NUM_CLASSES, size, generator=generator),
        depth=1 + torch.rand(1, *size, generator=generator),
        normal=nn.functional.normalize(torch.randn(3, *size, generator=generator), dim=0),
        edge=torch.randint(0, 2, size, generator=generator),
    )
    item, sample = packed(image), MultiTaskDataSample(metainfo=dict(img_shape=size))
    for task, value in truth.items():
        if task not in without:
            data = PixelData(data=value if value.ndim == 3 else value[None])
            item['data_samples'].set_data({f'gt_{FIELDS[task]}': data})
            sample.set_target(task, value)
    return item, dict(inputs=ours(image), data_samples=sample)


def all_predictions(segmentor, image):
    with torch.no_grad():
        sample = segmentor.test_step(collate([packed(image)]))[0]
    return {task: sample.get(f'pred_{field}').data for task, field in FIELDS.items()}
