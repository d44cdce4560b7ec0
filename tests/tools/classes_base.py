# Model and data of classes.py; no default scope, since no name has to be looked up.
from mmengine.dataset import DefaultSampler
from mmengine.visualization import LocalVisBackend

from mmrepmtl.datasets import EpochSampler, SynthRoomsDataset
from mmrepmtl.datasets.transforms import PackMultiTaskInputs, RandomFlip
from mmrepmtl.evaluation import DepthMetric, NormalMetric, SegmentationMetric
from mmrepmtl.models import (
    ConvDecoder,
    DepthHead,
    MultiTaskDataPreprocessor,
    MultiTaskModel,
    NormalHead,
    SegmentationHead,
    TimmEncoder,
)
from mmrepmtl.visualization import MultiTaskVisualizer
from tests.tools.own_parts import Brighten

_decoder = dict(type=ConvDecoder, hidden_channels=4, num_convs=1, dropout=0.1)
model = dict(
    type=MultiTaskModel,
    data_preprocessor=dict(type=MultiTaskDataPreprocessor),
    encoder=dict(type=TimmEncoder, name='test_resnet', pretrained=False),
    heads=dict(
        semseg=dict(type=SegmentationHead, num_classes=11, decoder=_decoder),
        depth=dict(type=DepthHead, decoder=_decoder),
        normal=dict(type=NormalHead, decoder=_decoder),
    ),
)
_train = [dict(type=Brighten), dict(type=RandomFlip, prob=0.5), dict(type=PackMultiTaskInputs)]
_test = [dict(type=PackMultiTaskInputs)]
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    drop_last=True,
    sampler=dict(type=EpochSampler, shuffle=True),
    dataset=dict(type=SynthRoomsDataset, split='train', size=(24, 32), num_samples=16, pipeline=_train),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(type=SynthRoomsDataset, split='val', size=(24, 32), num_samples=7, pipeline=_test, test_mode=True),
)
test_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(type=SynthRoomsDataset, split='test', size=(24, 32), num_samples=7, pipeline=_test, test_mode=True),
)
val_evaluator = [
    dict(type=SegmentationMetric, task='semseg'),
    dict(type=DepthMetric, task='depth'),
    dict(type=NormalMetric, task='normal'),
]
test_evaluator = val_evaluator
visualizer = dict(type=MultiTaskVisualizer, vis_backends=[dict(type=LocalVisBackend)])
randomness = dict(seed=0)
