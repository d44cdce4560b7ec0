import importlib.util
import os
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mmrepmtl.datasets import Office31Dataset, OfficeHomeDataset
from mmrepmtl.datasets.office import class_names, read_split
from mmrepmtl.registry import DATASETS
from mmrepmtl.utils.files import TEMPORARY
from tests.datasets.office_files import (
    CLASSES,
    OFFICE31,
    OFFICE_HOME,
    SPLITS,
    entries,
    image,
    write_images,
    write_lists,
    write_office31,
    write_office_home,
)

ROOT = Path(__file__).resolve().parents[2]

needs_data = pytest.mark.skipif(
    'MMREPMTL_DATA' not in os.environ, reason='needs Office-31: set MMREPMTL_DATA to the folder above office31'
)


@pytest.fixture
def root(tmp_path):
    write_office31(tmp_path / 'office31')
    return tmp_path / 'office31'


def lines_of(root, name):
    return (root / 'splits' / f'{name}.txt').read_text().splitlines()


def rewrite(root, name, number, line):
    """Replaces a line of a split file; returns the file's path and the line's number as errors have them."""
    lines = lines_of(root, name)
    lines[number - 1] = line
    path = root / 'splits' / f'{name}.txt'
    path.write_text('\n'.join(lines) + '\n')
    return f'{path}:{number}: '


@pytest.mark.parametrize('split', SPLITS)
@pytest.mark.parametrize('domain', OFFICE31)
def test_office31_is_read_as_the_lists_say(root, domain, split):
    dataset = DATASETS.build(dict(type='Office31Dataset', data_root=str(root), domain=domain, split=split))
    expected = entries()[domain, split]
    assert len(dataset) == len(expected) and dataset.test_mode == (split != 'train')
    classes = dataset.targets['category']['classes']
    assert len(classes) == 31 and classes[:4] == (*CLASSES, 'label 3')
    for results, (path, label, number) in zip(dataset, expected, strict=True):
        assert results['gt'] == dict(category=label) and classes[label] in path
        assert results['img_path'] == str(root / path)
        assert np.abs(results['img'] * 255 - image(domain, label, number)).mean() < 3


def test_office_home_with_the_official_folder_name(tmp_path):
    write_office_home(tmp_path)
    for domain in ('Real_World', 'Real World'):
        dataset = OfficeHomeDataset(domain, data_root=str(tmp_path))
        assert len(dataset) == 3 and '/Real World/mug/' in dataset[0]['img_path']
    assert len(dataset.targets['category']['classes']) == 65
    (tmp_path / 'Real World').rename(tmp_path / 'Real_World')
    assert '/Real_World/mug/' in OfficeHomeDataset('Real_World', data_root=str(tmp_path))[0]['img_path']


def test_lists_may_be_elsewhere_and_name_paths_with_a_space(tmp_path):
    lists = entries(OFFICE_HOME, ())
    write_images(tmp_path / 'data', lists, dict(Real_World='Real World'))
    spaced = {key: [(p.replace('Real_World', 'Real World'), *rest) for p, *rest in v] for key, v in lists.items()}
    write_lists(tmp_path / 'lists', spaced)
    dataset = OfficeHomeDataset('Real_World', 'test', data_root=str(tmp_path / 'data'), split_dir=tmp_path / 'lists')
    assert [results['gt']['category'] for results in dataset] == [0, 1, 2]


def test_the_environment_names_the_folder(root, monkeypatch):
    monkeypatch.setenv('MMREPMTL_DATA', str(root.parent))
    assert len(Office31Dataset('dslr')) == 5
    monkeypatch.delenv('MMREPMTL_DATA')
    with pytest.raises(ValueError, match='Office31Dataset: pass data_root, or set .* MMREPMTL_DATA'):
        Office31Dataset('dslr')


def test_unknown_names_are_refused(root):
    with pytest.raises(ValueError, match="domain is 'caltech', expected one of amazon, dslr, webcam"):
        Office31Dataset('caltech', data_root=root)
    with pytest.raises(ValueError, match="split is 'trainval'"):
        Office31Dataset('dslr', 'trainval', data_root=root)


@pytest.mark.parametrize(
    'line, message',
    [
        ('dslr/images/mug/frame_0000.jpg', "found 'dslr/images/mug/frame_0000.jpg', expected 'DOMAIN/"),
        ('dslr/images/mug/frame_0000.jpg one', 'expected .*LABEL'),
        ('frame_0000.jpg 0', 'expected .*CLASS/FILE'),
        ('dslr/images/mug/frame_0000.jpg 31', 'found label 31, expected 0 to 30'),
        ('webcam/images/mug/frame_0000.jpg 0', 'found webcam/.*, expected a path below dslr'),
        ('dslr/images/pen/frame_0099.jpg 1', "label 1 is 'pen' here, but in .*:2 label 1 is 'bike'"),
        ('dslr/images/mug/frame_0099.jpg 5', "label 5 is 'mug' here, but in .*:1 label 0 is 'mug'"),
    ],
)
def test_a_wrong_line_is_named(root, line, message):
    # Line 4 comes after the first line of each class.
    where = rewrite(root, 'dslr_train', 4, line)
    with pytest.raises(ValueError, match=f'^{where}.*{message}'):
        Office31Dataset('dslr', data_root=root)


def test_an_image_in_two_splits_is_refused(root):
    stolen = lines_of(root, 'dslr_train')[1]
    where = rewrite(root, 'dslr_test', 2, stolen)
    # Reading the training images alone finds it too.
    with pytest.raises(ValueError, match=f'^{where}.*frame_0001.jpg is in .*dslr_train.txt:2 too'):
        Office31Dataset('dslr', 'train', data_root=root)


def test_missing_files_are_named(root):
    (root / 'dslr/images/bike/frame_0001.jpg').unlink()
    (root / 'dslr/images/mug/frame_0003.jpg').unlink()
    message = r'dslr_train.txt:2: there is no image .*bike/frame_0001.jpg; 2 of the 5 images of the split are missing'
    with pytest.raises(FileNotFoundError, match=message):
        Office31Dataset('dslr', data_root=root)
    (root / 'splits/webcam_val.txt').unlink()
    assert len(Office31Dataset('webcam', 'train', data_root=root)) == 7
    with pytest.raises(FileNotFoundError, match='there is no split file .*webcam_val.txt'):
        Office31Dataset('webcam', 'val', data_root=root)
    (root / 'splits/webcam_test.txt').write_text('\n')
    with pytest.raises(ValueError, match='webcam_test.txt: names no image'):
        Office31Dataset('webcam', 'test', data_root=root)


def test_a_damaged_image_is_named(root):
    (root / 'dslr/images/mug/frame_0000.jpg').write_bytes(b'no image')
    with pytest.raises(ValueError, match='dslr/images/mug/frame_0000.jpg: cannot be read as an image'):
        Office31Dataset('dslr', data_root=root)[0]


# The converter.


def converter():
    spec = importlib.util.spec_from_file_location('convert_office', ROOT / 'tools/dataset_converters/office.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def convert(src, dst, *options):
    return converter().main([str(src), str(dst), '--workers', '2', *map(str, options)])


def files(folder):
    paths = sorted(path for path in Path(folder).rglob('*') if path.is_file() and path.name != 'conversion.json')
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture
def official(tmp_path, monkeypatch):
    """The official folders with other files between them, and lists elsewhere; official counts are theirs."""
    monkeypatch.setattr(Office31Dataset, 'OFFICIAL_COUNTS', OFFICE31)
    lists = entries()
    write_images(tmp_path / 'src/domain_adaptation_images', lists)
    other = tmp_path / 'src/domain_adaptation_images/amazon/interest_points/mug/histogram_0001.SURF.mat'
    other.parent.mkdir(parents=True)
    other.write_bytes(b'x')
    (tmp_path / 'src/README.jpg.txt').write_text('x')
    write_lists(tmp_path / 'lists', lists)
    return tmp_path / 'src'


def pack(kind, folder):
    path = folder.parent / {'zip': 'official.zip', 'tar': 'official.tar.gz'}[kind]
    if kind == 'zip':
        with zipfile.ZipFile(path, 'w') as archive:
            for file in folder.rglob('*'):
                archive.write(file, file.relative_to(folder))
    else:
        with tarfile.open(path, 'w:gz') as archive:
            archive.add(folder, '.')
    return path


@pytest.mark.parametrize('kind', ['folder', 'zip', 'tar'])
def test_conversion_with_the_published_lists(official, tmp_path, kind, capsys):
    source = official if kind == 'folder' else pack(kind, official)
    assert convert(source, tmp_path / 'dst', '--splits', tmp_path / 'lists') == 0
    out = capsys.readouterr().out
    assert 'amazon: 12/6/6 images in train/val/test (published: 12/6/6)' in out and 'NOT' not in out
    expected = files(official / 'domain_adaptation_images') | {
        f'splits/{name}': content for name, content in files(tmp_path / 'lists').items()
    }
    expected = {name: content for name, content in expected.items() if not name.endswith('.mat')}
    assert files(tmp_path / 'dst') == expected
    assert len(Office31Dataset('amazon', data_root=tmp_path / 'dst')) == 12


def test_a_second_run_does_only_what_is_missing(official, tmp_path):
    dst = tmp_path / 'dst'
    assert convert(official, dst, '--splits', tmp_path / 'lists') == 0
    before = files(dst)
    times = {name: (dst / name).stat().st_mtime_ns for name in before}
    (dst / 'dslr/images/mug/frame_0000.jpg').unlink()
    leftover = dst / f'dslr/images/mug/.frame_0000.jpg.1234{TEMPORARY}'
    leftover.write_bytes(b'half')
    assert convert(official, dst, '--splits', tmp_path / 'lists') == 0
    assert files(dst) == before
    changed = {name for name, time in times.items() if (dst / name).stat().st_mtime_ns != time and 'splits' not in name}
    assert changed == {'dslr/images/mug/frame_0000.jpg'}


def test_other_lists_do_not_go_into_the_same_folder(official, tmp_path, capsys):
    assert convert(official, tmp_path / 'dst', '--splits', tmp_path / 'lists') == 0
    assert convert(official, tmp_path / 'dst') == 1
    assert 'begun with other settings (other samples)' in capsys.readouterr().err


def test_what_is_missing_is_counted(official, tmp_path, capsys):
    (official / 'domain_adaptation_images/dslr/images/mug/frame_0000.jpg').unlink()
    assert convert(official, tmp_path / 'dst', '--splits', tmp_path / 'lists') == 1
    assert 'not complete: dslr train: 4 of 5 images. Pass --allow-partial' in capsys.readouterr().err
    assert not (tmp_path / 'dst').exists()
    assert convert(official, tmp_path / 'dst', '--splits', tmp_path / 'lists', '--allow-partial') == 0
    assert 'dslr: 4/3/3 images' in capsys.readouterr().out
    assert len(Office31Dataset('dslr', data_root=tmp_path / 'dst')) == 4


def test_a_damaged_image_stops_before_the_lists(official, tmp_path, capsys):
    path = official / 'domain_adaptation_images/webcam/images/bike/frame_0001.jpg'
    content = path.read_bytes()
    path.write_bytes(b'damaged')
    assert convert(official, tmp_path / 'dst', '--splits', tmp_path / 'lists') == 1
    assert 'webcam/images/bike/frame_0001.jpg: cannot be read as an image' in capsys.readouterr().err
    assert not (tmp_path / 'dst/splits').exists() and not list((tmp_path / 'dst').rglob('.*'))
    path.write_bytes(content)
    assert convert(official, tmp_path / 'dst', '--splits', tmp_path / 'lists') == 0


def test_splits_that_are_made_are_stratified_and_always_the_same(tmp_path, monkeypatch, capsys):
    counts = dict(amazon=(60, 30, 30), dslr=(30, 3, 3), webcam=(15, 9, 9))
    monkeypatch.setattr(Office31Dataset, 'OFFICIAL_COUNTS', counts)
    lists = entries(counts)
    write_images(tmp_path / 'src', lists)
    assert convert(tmp_path / 'src', tmp_path / 'one') == 0
    assert 'they are NOT the published ones' in capsys.readouterr().out
    assert convert(pack('zip', tmp_path / 'src'), tmp_path / 'two') == 0
    assert files(tmp_path / 'one') == files(tmp_path / 'two')
    for domain, sizes in counts.items():
        whole = Counter(label for split in SPLITS for _, label, _ in lists[domain, split])
        found = {split: read_split(tmp_path / f'one/splits/{domain}_{split}.txt', 31) for split in SPLITS}
        every = [line.image for part in found.values() for line in part]
        assert len(set(every)) == len(every) == sum(sizes)
        names = class_names([line for part in found.values() for line in part], 31)
        assert names[:3] == tuple(sorted(CLASSES))
        for share, split in zip((0.6, 0.2, 0.2), SPLITS, strict=True):
            by_class = Counter(line.class_name for line in found[split])
            for label, count in whole.items():
                assert abs(by_class[CLASSES[label]] - share * count) <= 1


def test_a_source_without_domains_is_refused(tmp_path, capsys):
    (tmp_path / 'src').mkdir()
    assert convert(tmp_path / 'src', tmp_path / 'dst') == 1
    assert 'found no images in DOMAIN/[images/]CLASS/' in capsys.readouterr().err
    write_images(tmp_path / 'src/a', entries())
    write_images(tmp_path / 'src/b', entries(OFFICE_HOME, ()))
    assert convert(tmp_path / 'src', tmp_path / 'dst') == 1
    assert 'found images of both data sets' in capsys.readouterr().err
    assert convert(tmp_path / 'none', tmp_path / 'dst') == 1
    assert 'there is no' in capsys.readouterr().err


def test_office_home_is_converted_without_the_space(tmp_path, capsys):
    lists = entries(OFFICE_HOME, ())
    write_images(tmp_path / 'src/OfficeHomeDataset_10072016', lists, dict(Real_World='Real World'))
    write_lists(tmp_path / 'lists', lists)
    # The official counts are larger.
    assert convert(tmp_path / 'src', tmp_path / 'dst', '--splits', tmp_path / 'lists') == 1
    assert 'Real_World train: 3 of 2586 images' in capsys.readouterr().err
    assert convert(tmp_path / 'src', tmp_path / 'dst', '--splits', tmp_path / 'lists', '--allow-partial') == 0
    assert (tmp_path / 'dst/Real_World/mug').is_dir()
    assert len(OfficeHomeDataset('Real World', data_root=tmp_path / 'dst')) == 3


# The real data.


@needs_data
@pytest.mark.realdata
@pytest.mark.parametrize('domain', Office31Dataset.DOMAINS)
def test_real_office31(domain):
    sets = [Office31Dataset(domain, split) for split in SPLITS]
    assert tuple(map(len, sets)) == Office31Dataset.OFFICIAL_COUNTS[domain]
    classes = sets[0].targets['category']['classes']
    assert len(set(classes)) == 31 and (classes[0], classes[1], classes[30]) == (
        'back_pack',
        'paper_notebook',
        'punchers',
    )
    results = sets[0][0]
    assert min(results['img_shape']) <= 256 and results['img'].std() > 0.02
    assert f'/{classes[results["gt"]["category"]]}/' in results['img_path']


@needs_data
@pytest.mark.realdata
@pytest.mark.parametrize('domain', OfficeHomeDataset.DOMAINS)
def test_real_lists_of_office_home(domain):
    folder = Path(os.environ['MMREPMTL_DATA'], 'office_home_splits')
    if not folder.is_dir():
        pytest.skip(f'needs the published lists of Office-Home in {folder}')
    lines = [read_split(folder / f'{domain}_{split}.txt', 65) for split in SPLITS]
    assert tuple(map(len, lines)) == OfficeHomeDataset.OFFICIAL_COUNTS[domain]
    names = class_names([line for part in lines for line in part], 65)
    assert len(set(names)) == 65 and names[0] == 'Calendar'
