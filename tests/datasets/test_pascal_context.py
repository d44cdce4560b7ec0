"""PASCAL-Context on a pseudo data set of six images in the archive's layout, against slow readers."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from mmrepmtl.apis import load_config, train
from mmrepmtl.datasets import PASCALContextDataset
from mmrepmtl.datasets.checks import check_target, check_targets
from mmrepmtl.datasets.pascal_context import NORMAL_CLASSES, PART_IDS, label_boundaries, voc_palette
from mmrepmtl.datasets.transforms.functional import resize_lines
from mmrepmtl.evaluation import delta_p_task
from mmrepmtl.models.data_preprocessor import MultiTaskDataPreprocessor
from mmrepmtl.registry import METRICS, MODELS, TRANSFORMS
from tests.datasets.pascal_files import IDS, make_raw, people_of, size_of, write_archive
from tests.evaluation.harness import slow_thin

ROOT = Path(__file__).resolve().parents[2]
TARGETS = ('semseg', 'human_parts', 'saliency', 'edge', 'normal')


def slow_parts(name):
    """Parts by hand: later objects and parts over earlier ones; None without a person that has parts."""
    numbers = dict(head=1, nose=1, neck=2, torso=2, luarm=3, rhand=4, ruleg=5, lfoot=6)
    target = np.zeros(size_of(name), np.int64)
    for class_id, _, parts in people_of(name):
        for part, mask in parts if class_id == 15 else ():
            for y, x in np.argwhere(mask):
                target[y, x] = numbers[part]
    return target if target.any() else None


def slow_edges(labels):
    """Edges, thinned: the four neighbours (mirrored without the border) do not add up to four times the pixel."""
    height, width = labels.shape
    mask = np.zeros(labels.shape, bool)
    for y in range(height):
        for x in range(width):
            up, down = labels[abs(y - 1), x], labels[y + 1 if y + 1 < height else height - 2, x]
            left, right = labels[y, abs(x - 1)], labels[y, x + 1 if x + 1 < width else width - 2]
            mask[y, x] = int(up) + int(down) + int(left) + int(right) != 4 * int(labels[y, x])
    return slow_thin(mask)


def converter():
    spec = importlib.util.spec_from_file_location(
        'pascal_converter', ROOT / 'tools/dataset_converters/pascal_context.py'
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def archive(tmp_path_factory):
    root = tmp_path_factory.mktemp('archive')
    write_archive(root)
    return root


@pytest.fixture(scope='module')
def prepared(archive, tmp_path_factory):
    root = tmp_path_factory.mktemp('prepared')
    assert converter().main([str(archive), str(root), '--workers', '0', '--allow-partial']) == 0
    return root


def load(root, split, **arguments):
    dataset = PASCALContextDataset(data_root=str(root), split=split, **arguments)
    return dataset, [dataset.load_sample(dataset.get_data_info(index)) for index in range(len(dataset))]


@pytest.mark.parametrize('layout', ['archive', 'prepared'])
@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_targets_equal_slow_readers(archive, prepared, layout, split):
    dataset, samples = load(dict(archive=archive, prepared=prepared)[layout], split)
    names = IDS['train' if split == 'train' else 'val']
    assert dataset.layout == layout and dataset.test_mode == (split != 'train')
    assert [Path(sample['img_path']).stem for sample in samples] == list(names)
    for name, sample in zip(names, samples, strict=True):
        raw, gt = make_raw(name), sample['gt']
        assert np.abs(sample['img'] - raw['image'] / 255).max() < 0.1  # JPEG
        assert np.array_equal(gt['semseg'], raw['semseg'])
        assert np.array_equal(gt['saliency'], raw['sal'] / 255 > 0.5)
        assert np.array_equal(gt['edge'], slow_edges(raw['labels'])) and 0 < gt['edge'].mean() < 0.5
        valid = np.isin(raw['labels'], (72, 284))
        expected = 2 * raw['coded'].astype(float) / 255 - 1
        expected = expected / np.linalg.norm(expected, axis=-1, keepdims=True) * valid[..., None]
        assert 0 < valid.mean() < 1 and np.abs(gt['normal'] - expected).max() < 1e-5
        parts = slow_parts(name)
        assert ('human_parts' in gt) == (parts is not None)
        if parts is not None:
            assert np.array_equal(gt['human_parts'], parts) and len(np.unique(parts)) == 7


def test_both_layouts_give_the_same_and_pass_the_checks(archive, prepared):
    pipeline = [dict(type='PackMultiTaskInputs')]
    for split in IDS:
        one, other = (
            PASCALContextDataset(data_root=str(root), split=split, pipeline=pipeline) for root in (archive, prepared)
        )
        for index in range(len(one)):
            a, b = one[index], other[index]
            assert torch.equal(a['inputs'], b['inputs'])
            targets, others = a['data_samples'].targets, b['data_samples'].targets
            assert targets.keys() == others.keys()
            for name in targets:
                torch.testing.assert_close(targets[name], others[name], rtol=0, atol=1e-6)


def test_people_are_looked_for_in_the_images_where_there_is_no_list(archive, tmp_path):
    write_archive(tmp_path, with_lists=False)
    for split in IDS:
        labelled = [['human_parts' in sample['gt'] for sample in load(root, split)[1]] for root in (archive, tmp_path)]
        assert labelled[0] == labelled[1] and any(labelled[0]) and not all(labelled[0])
    (tmp_path / 'ImageSets/Parts').mkdir(parents=True)
    (tmp_path / 'ImageSets/Parts/val.txt').write_text('2008_000003 1')
    with pytest.raises(ValueError, match=r'Parts.val\.txt: found no JSON'):
        load(tmp_path, 'val')


def test_the_parts_are_all_24_of_a_person_and_the_normal_classes_are_170():
    assert len(PART_IDS) == 24 and set(PART_IDS.values()) == set(range(1, 7))
    assert PART_IDS['lebrow'] == 1 and PART_IDS['rlarm'] == PART_IDS['lhand'] == 4 and PART_IDS['rfoot'] == 6
    assert len(set(NORMAL_CLASSES)) == 170 and {440, 158, 427} <= set(NORMAL_CLASSES) and 431 not in NORMAL_CLASSES
    assert voc_palette(21)[15] == [192, 128, 128] and voc_palette(21)[20] == [0, 64, 128]


def test_no_class_is_drawn_in_the_black_of_void():
    for name in ('semseg', 'human_parts'):
        target = PASCALContextDataset.METAINFO['targets'][name]
        colours = {tuple(colour) for colour in target['palette']}
        assert len(colours) == len(target['classes']) and (0, 0, 0) not in colours


def test_boundaries_are_thin_lines_between_classes():
    labels = np.full((20, 24), 7, np.uint16)
    labels[:, 12:] = 300
    edges = label_boundaries(labels)
    assert edges.dtype == np.int64 and (edges.sum(1)[1:-1] == 1).all()
    assert set(np.flatnonzero(edges.any(0))) <= {11, 12} and not label_boundaries(labels[:, :12]).any()


def test_only_wanted_targets_are_read(archive, tmp_path):
    _, samples = load(archive, 'train', targets=['edge', 'semseg'])
    assert all(set(sample['gt']) == {'edge', 'semseg'} for sample in samples)


def test_a_batch_with_unlabelled_images_goes_through_the_model_input(archive):
    pipeline = [dict(type='RandomFlip'), dict(type='PadMultiTask', size=(32, 32)), dict(type='PackMultiTaskInputs')]
    dataset = PASCALContextDataset(data_root=str(archive), pipeline=pipeline, test_mode=True)
    items = [dataset[index] for index in range(4)]
    batch = dict(inputs=[i['inputs'] for i in items], data_samples=[i['data_samples'] for i in items])
    batch = MultiTaskDataPreprocessor()(batch, training=True)
    assert batch['inputs'].shape == (4, 3, 32, 32)
    for sample in batch['data_samples']:
        for name, value in (('edge', 255), ('saliency', 255), ('semseg', 255), ('normal', 0)):
            assert (sample.targets[name][..., 28:, :] == value).all(), name


def test_yes_or_no_maps_move_with_the_image():
    image = np.random.default_rng(0).random((12, 16, 3)).astype(np.float32)
    mask = (image[..., 0] > 0.7).astype(np.int64)
    mask[0] = 255

    def transformed(name, **arguments):
        results = dict(img=image, gt=dict(a=mask.copy()), targets=dict(a=dict(kind='binary')), img_shape=(12, 16))
        np.random.seed(3)
        return TRANSFORMS.build(dict(type=name, **arguments)).transform(results)

    flipped = transformed('RandomFlip', prob=1.0)
    assert np.array_equal(flipped['gt']['a'], mask[:, ::-1])
    assert np.array_equal(flipped['gt']['a'][1:] == 1, flipped['img'][1:, :, 0] > 0.7)
    padded = transformed('PadMultiTask', size=(14, 18))
    assert np.array_equal(padded['gt']['a'][:12, :16], mask) and (padded['gt']['a'][12:] == 255).all()
    zoomed = transformed('RandomZoom', scales=(2.0,))['gt']['a']
    np.random.seed(3)
    np.random.randint(1)
    top, left = np.random.randint(7), np.random.randint(9)
    assert np.array_equal(zoomed[::2, ::2], mask[top : top + 6, left : left + 8])


def test_lines_stay_where_they_are_and_void_spreads_only_alone():
    lines = np.zeros((8, 8), np.int64)
    lines[3] = 1
    lines[:, 6:] = 255
    small = resize_lines(lines, (4, 4))
    assert small[:, 3].tolist() == [255] * 4 and small[:, :3].tolist() == [[0] * 3, [1] * 3, [0] * 3, [0] * 3]
    assert np.array_equal(resize_lines(lines, (8, 8)), lines)


@pytest.mark.parametrize(
    ('value', 'message'),
    [
        (np.full((2, 3), 2), r'found labels \[2\], expected 0 \(no\), 1 \(yes\), or 255'),
        (np.zeros((2, 2), np.int64), r'found \(2, 2\) int64'),
        (np.zeros((2, 3), np.float32), r'found \(2, 3\) float32'),
    ],
)
def test_yes_or_no_maps_are_checked(value, message):
    check_targets(dict(edge=dict(kind='binary')))
    check_target('edge', np.array([[0, 1, 255]]), dict(kind='binary'), (1, 3), 'a.png')
    with pytest.raises(ValueError, match=f"a.png: target 'edge': {message}"):
        check_target('edge', value, dict(kind='binary'), (2, 3), 'a.png')


def test_resizing_keeps_edges_whole(archive):
    pipeline = [dict(type='ResizeMultiTask', size=(12, 12)), dict(type='PackMultiTaskInputs')]
    dataset = PASCALContextDataset(data_root=str(archive), split='train', pipeline=pipeline, test_mode=True)
    plain = PASCALContextDataset(data_root=str(archive), split='train', test_mode=True)
    for index, name in enumerate(IDS['train']):
        small, edges = dataset[index]['data_samples'].targets['edge'], plain[index]['gt']['edge']
        height, width = size_of(name)
        for y in range(12):
            for x in range(12):
                rows = slice(int(y * height / 12), int(np.ceil((y + 1) * height / 12)))
                columns = slice(int(x * width / 12), int(np.ceil((x + 1) * width / 12)))
                assert small[y, x] == edges[rows, columns].max()


def grey(path, size, value=0):
    Image.fromarray(np.full(size, value, np.uint8)).save(path)


SEMSEG, SALIENCY, NORMALS = (
    f'{folder}/2008_000003.png' for folder in ('semseg/pascal-context', 'sal_distill', 'normals_distill')
)
MAP, PERSON = 'pascal-context/trainval/2008_000003.mat', 'human_parts/2008_000003.mat'
# name: (what is done to the archive, what the error says)
BREAKS = {
    'no list': (lambda root: (root / 'ImageSets/Context/val.txt').unlink(), r'val\.txt, expected one image id'),
    'no image': (
        lambda root: (root / 'JPEGImages/2008_000003.jpg').unlink(),
        r'1 of 2 images are missing in .*the first is 2008_000003\.jpg',
    ),
    'no label': (
        lambda root: (root / SEMSEG).unlink(),
        r'1 of 2 files are missing in .*pascal-context, the first is 2008_000003\.png',
    ),
    'no images': (lambda root: [path.unlink() for path in (root / 'JPEGImages').iterdir()], r'<i>\.jpg'),
    'class 30': (
        lambda root: grey(root / SEMSEG, (28, 21), 30),
        r'2008_000003\.png: target .semseg.: found labels \[30\]',
    ),
    'colours': (
        lambda root: grey(root / SEMSEG, (28, 21, 3)),
        r'2008_000003\.png: found a picture of mode RGB',
    ),
    'cut mat': (
        lambda root: (root / MAP).write_bytes(b'MATLAB 5.0'),
        r'2008_000003\.mat: cannot be read as a MATLAB file .*LabelMap',
    ),
    'other mat': (lambda root: savemat(root / MAP, dict(x=1)), r'2008_000003\.mat: found no LabelMap'),
    'no anno': (
        lambda root: savemat(root / PERSON, dict(x=1)),
        r"2008_000003\.mat: cannot be read \(KeyError\('anno'\)\), expected a PASCAL-Part annotation",
    ),
    'small saliency': (
        lambda root: grey(root / SALIENCY, (9, 9)),
        r"2008_000003\.png: target 'saliency' has size \(9, 9\), expected \(28, 21\).*resize_targets=True",
    ),
    'small normals': (
        lambda root: grey(root / NORMALS, (9, 9, 3)),
        r'2008_000003\.mat: LabelMap has size \(28, 21\), expected \(9, 9\)',
    ),
}


@pytest.mark.parametrize('damage', BREAKS)
def test_damage_is_named_with_the_file_and_what_was_expected(damage, tmp_path):
    write_archive(tmp_path)
    change, message = BREAKS[damage]
    change(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        dataset = PASCALContextDataset(data_root=str(tmp_path), split='val')
        [dataset[index] for index in range(2)]
    if damage == 'small saliency':
        _, samples = load(tmp_path, 'val', resize_targets=True)
        assert samples[0]['gt']['saliency'].shape == (28, 21)
    if damage == 'no label':
        _, samples = load(tmp_path, 'val', allow_unlabelled=True)
        assert ['semseg' in sample['gt'] for sample in samples] == [False, True]


@pytest.mark.parametrize(('arguments', 'message'), [(dict(split='trainval'), 'trainval'), (dict(layout='npy'), 'npy')])
def test_impossible_settings_are_named(archive, arguments, message):
    with pytest.raises(ValueError, match=f"PASCALContextDataset: .*'{message}'"):
        PASCALContextDataset(data_root=str(archive), **arguments)


def test_the_converter_asks_before_it_takes_a_part(archive, tmp_path, capsys):
    main = converter().main
    assert main([str(archive), str(tmp_path / 'out'), '--workers', '0']) == 1
    assert 'train: 4 of 4998 samples; val: 2 of 5105 samples' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_a_second_run_writes_only_what_is_missing(archive, tmp_path, capsys):
    main, out = converter().main, tmp_path / 'out'
    arguments = [str(archive), str(out), '--workers', '0', '--allow-partial']
    assert main(arguments) == 0
    files = sorted(out.rglob('*.*'))
    assert len(files) == 6 * 6 + 1 and 'train: image 4, semseg 4, human_parts 4' in capsys.readouterr().out
    edge, parts = out / 'train/edge/2008_000009.png', out / 'train/human_parts/2008_000009.png'
    before = edge.read_bytes()
    edge.unlink()
    (edge.parent / '.2008_000009.png.1.tmp').write_bytes(before[:20])  # the rest of a killed run
    parts.write_bytes(b'kept')
    with pytest.raises(FileNotFoundError, match=r'1 of 4 files are missing in .*edge, the first is 2008_000009\.png'):
        len(PASCALContextDataset(data_root=str(out)))
    assert main(arguments) == 0
    assert edge.read_bytes() == before and parts.read_bytes() == b'kept' and sorted(out.rglob('*.*')) == files
    (out / 'train/image/2008_000009.jpg').unlink()
    with pytest.raises(FileNotFoundError, match='1 of 4 images are missing in .*run the converter again'):
        len(PASCALContextDataset(data_root=str(out)))


def test_the_converter_names_a_damaged_file_and_converts_the_others(tmp_path, capsys):
    write_archive(tmp_path / 'in')
    (tmp_path / 'in/pascal-context/trainval/2008_000003.mat').write_bytes(b'')
    arguments = [str(tmp_path / 'in'), str(tmp_path / 'out'), '--workers', '0', '--allow-partial']
    assert converter().main(arguments) == 1
    assert '2008_000003.mat: cannot be read' in capsys.readouterr().err
    assert len(list((tmp_path / 'out').rglob('*.png'))) == 5 * 5


SMALL = ROOT / 'configs/pascal_context/rep-mtl_resnet18-d16_conv_b16-20e_pascal-context-128x128.py'
LARGE = ROOT / 'configs/pascal_context/rep-mtl_resnet50-d8_deeplab_b8-60e_pascal-context-512x512.py'


def test_the_small_config_trains_and_evaluates_all_five_tasks(archive, tmp_path):
    torch.set_num_threads(1)
    cfg = load_config(SMALL, work_dir=str(tmp_path / 'run'), data_root=str(archive))
    cfg.train_cfg.max_epochs = cfg.train_cfg.val_interval = 1
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(batch_size=4, num_workers=0, persistent_workers=False)
        loader.dataset.pipeline[0].size = (32, 32)
    metrics = train(cfg)
    expected = ['semseg/mIoU', 'human_parts/mIoU', 'saliency/maxF', 'saliency/max_mIoU', 'normal/mean', 'edge/odsF']
    assert list(metrics) == expected and all(np.isfinite(value) for value in metrics.values())
    # One metric per task counts: a change of max_mIoU, the second of saliency, changes nothing.
    changed = metrics | {'saliency/max_mIoU': 1.0}
    reference = {key: max(value, 1.0) for key, value in metrics.items()}
    assert delta_p_task(metrics, reference) == delta_p_task(changed, reference)


def test_the_large_config_has_the_weights_and_metrics_of_the_protocol():
    cfg = load_config(LARGE)
    assert {task: head.loss_weight for task, head in cfg.model.heads.items()} == dict(
        semseg=1.0, human_parts=2.0, saliency=5.0, edge=50.0, normal=10.0
    )
    assert cfg.model.heads.edge.positive_weight == 0.95
    metrics = {metric.task: METRICS.build(metric) for metric in cfg.test_evaluator}
    edge, saliency = metrics['edge'], metrics['saliency']
    assert (len(edge.thresholds), edge.max_distance) == (99, 0.0075)
    assert saliency.thresholds == pytest.approx(np.linspace(0.2, 0.9, 15)) and saliency.names == ('maxF', 'max_mIoU')
    assert metrics['normal'].names == ('mean',) and metrics['semseg'].names == metrics['human_parts'].names == ('mIoU',)


@pytest.mark.slow
def test_the_large_model_is_the_papers_network_with_five_heads():
    model = MODELS.build(load_config(LARGE).model)
    count = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in model.heads.items()}
    assert sum(p.numel() for p in model.encoder.parameters()) / 1e6 == pytest.approx(23.5, abs=0.05)
    assert all(value == pytest.approx(16.1, abs=0.06) for value in count.values())
    batch = dict(inputs=[torch.rand(3, 375, 500), torch.rand(3, 500, 333)], data_samples=None)
    assert model.data_preprocessor(batch)['inputs'].shape == (2, 3, 512, 512)
