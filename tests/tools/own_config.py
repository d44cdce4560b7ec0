"""A config of the folder data set on pseudo data, for the tests of the tools that look at data."""

from pathlib import Path

from tests.datasets.own_files import CLASSES, write_folders

TRAIN, VAL = ['a/1', 'a/2', 'a/3', 'b/1', 'b/2'], ['c/1', 'c/2']
LABELS = dict(
    semseg=dict(kind='segmentation', folder='masks', classes=CLASSES),
    edge=dict(kind='binary', folder='edges', suffix='_edge', ids=[0, 255]),
    depth=dict(kind='depth', folder='depth', scale=1000),
    normal=dict(kind='normals', folder='normals'),
    scene=dict(kind='classification', folder='scene', classes=['office', 'kitchen']),
    pose=dict(kind='regression', folder='pose', names=['x', 'y']),
)
_DECODER = dict(type='ConvDecoder', hidden_channels=4, num_convs=1)
HEADS = dict(
    semseg=dict(type='SegmentationHead', num_classes=3, decoder=_DECODER),
    edges=dict(type='BinaryHead', target='edge', decoder=_DECODER),
    depth=dict(type='DepthHead', decoder=_DECODER),
    normal=dict(type='NormalHead', decoder=_DECODER),
    scene=dict(type='ClassificationHead', num_classes=2),
    pose=dict(type='RegressionHead', num_values=2),
)
METRICS = [
    dict(type='SegmentationMetric', task='semseg'),
    dict(type='SaliencyMetric', task='edges', target='edge'),
    dict(type='DepthMetric', task='depth'),
    dict(type='NormalMetric', task='normal'),
    dict(type='ClassificationMetric', task='scene'),
    dict(type='RegressionMetric', task='pose'),
]


def make_config(root: Path) -> dict:
    """Writes the data and returns the config as nested dicts, to be changed by a test."""
    write_folders(root, TRAIN + VAL)
    for split, names in (('train', TRAIN), ('val', VAL)):
        (root / f'{split}.txt').write_text('\n'.join(names))

    def loader(split, pipeline, **settings):
        dataset = dict(type='MultiTaskFolderDataset', data_root=str(root), split=split, split_file='{split}.txt')
        return dict(
            num_workers=0,
            sampler=dict(type='EpochSampler', shuffle=split == 'train'),
            dataset=dict(dataset, labels=dict(LABELS), pipeline=pipeline),
            **settings,
        )

    pack = [dict(type='PackMultiTaskInputs')]
    augmented = [dict(type='RandomZoom', scales=(1.5,)), dict(type='RandomFlip', prob=0.5), *pack]
    val = loader('val', pack, batch_size=2)
    return dict(
        default_scope='mmrepmtl',
        randomness=dict(seed=0),
        model=dict(
            type='MultiTaskModel',
            data_preprocessor=dict(type='MultiTaskDataPreprocessor'),
            encoder=dict(type='TimmEncoder', name='test_resnet', pretrained=False),
            heads=dict(HEADS),
        ),
        train_dataloader=loader('train', augmented, batch_size=2, drop_last=True),
        val_dataloader=val,
        test_dataloader=val,
        val_evaluator=list(METRICS),
        test_evaluator=list(METRICS),
        optim_wrapper=dict(type='MultiTaskOptimWrapper', optimizer=dict(type='Adam', lr=1e-3), shared='encoder'),
    )
