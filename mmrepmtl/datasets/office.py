from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmrepmtl.datasets import readers
from mmrepmtl.datasets.base import MultiTaskDataset
from mmrepmtl.registry import DATASETS

SPLITS = ('train', 'val', 'test')


class SplitLine(NamedTuple):
    """One line of a split file: an image below the folder of the data, and its label."""

    image: str
    label: int
    where: str

    @property
    def class_name(self) -> str:
        """The folder of the image."""
        return Path(self.image).parent.name


def read_split(path: Path, num_classes: int) -> list[SplitLine]:
    """Reads a split file, ``path label`` on each line.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: Naming file and line, for a line of another form or a label that is not in [0, num_classes).
    """
    if not path.is_file():
        raise FileNotFoundError(
            f'there is no split file {path}; Office-31 and Office-Home come without splits: pass split_dir, the '
            'folder of the published lists, or make some with tools/dataset_converters/office.py'
        )
    lines = []
    for number, text in enumerate(path.read_text(encoding='utf-8').splitlines(), start=1):
        if not text.strip():
            continue
        where = f'{path}:{number}'
        # From the right: folders of the official download may hold a space.
        image, _, label = text.strip().rpartition(' ')
        if not (label.isdecimal() and len(Path(image).parts) >= 3):
            raise ValueError(f"{where}: found {text!r}, expected 'DOMAIN/.../CLASS/FILE LABEL'")
        if int(label) >= num_classes:
            raise ValueError(f'{where}: found label {label}, expected 0 to {num_classes - 1}')
        lines.append(SplitLine(image.strip(), int(label), where))
    if not lines:
        raise ValueError(f'{path}: names no image')
    return lines


def class_names(lines: list[SplitLine], num_classes: int) -> tuple[str, ...]:
    """The folder of each label's images, in the order of the labels; 'label N' where there are none.

    Raises:
        ValueError: Naming file and line, if an image is listed twice, or folders and labels are not one to one.
    """
    images: dict[str, SplitLine] = {}
    by_label: dict[int, SplitLine] = {}
    by_name: dict[str, SplitLine] = {}
    for line in lines:
        if (other := images.setdefault(line.image, line)) is not line:
            raise ValueError(f'{line.where}: {line.image} is in {other.where} too; an image belongs to one split, once')
        for other in (by_label.setdefault(line.label, line), by_name.setdefault(line.class_name, line)):
            if (other.label, other.class_name) != (line.label, line.class_name):
                raise ValueError(
                    f'{line.where}: label {line.label} is {line.class_name!r} here, but in {other.where} label '
                    f'{other.label} is {other.class_name!r}'
                )
    return tuple(by_label[label].class_name if label in by_label else f'label {label}' for label in range(num_classes))


def domain_folder(name: str) -> str:
    """The name of a domain with an underscore for the space that the official folder may have."""
    return name.replace(' ', '_')


class OfficeDataset(MultiTaskDataset):
    """Base of Office-31 and Office-Home: one domain of them, with the target ``category``.

    ``data_root`` holds a folder per domain and ``splits`` with ``DOMAIN_{train,val,test}.txt``, one ``path label`` per
    line, the path below ``data_root``. Label ids come from these files (the published ones are not alphabetical),
    names of classes from the folders.

    Args:
        domain: Name of the domain.
        split: 'train', 'val' or 'test'.
        data_root: The folder of the data; None takes ``FOLDER`` in the folder that the environment variable
            ``MMREPMTL_DATA`` names.
        split_dir: The folder of the split files; a relative one starts at ``data_root``.
        test_mode: None means all splits but 'train'.
        **kwargs: Those of ``MultiTaskDataset``: ``pipeline``, ``indices``, ``seed``, ``check``.

    Raises:
        ValueError: On an unknown domain or split, no ``data_root``, or a wrong line of a split file.
        FileNotFoundError: If a split file or an image is missing, naming what was expected.
    """

    FOLDER: str
    DOMAINS: tuple[str, ...]
    NUM_CLASSES: int
    # Images per domain in train, val and test of the published splits.
    OFFICIAL_COUNTS: Mapping[str, tuple[int, int, int]]

    def __init__(
        self,
        domain: str,
        split: str = 'train',
        data_root: str | None = None,
        split_dir: str = 'splits',
        test_mode: bool | None = None,
        metainfo: Mapping | None = None,
        **kwargs: Any,
    ) -> None:
        name = type(self).__name__
        self.domain = domain_folder(domain)
        if self.domain not in self.DOMAINS:
            raise ValueError(f'{name}: domain is {domain!r}, expected one of {", ".join(self.DOMAINS)}')
        if split not in SPLITS:
            raise ValueError(f"{name}: split is {split!r}, expected 'train', 'val' or 'test'")
        self.split = split
        data_root = readers.resolve_root(name, data_root, self.FOLDER)
        self._lines, classes = self._read_splits(Path(data_root, Path(split_dir).expanduser()))
        declared = dict(category=dict(kind='classification', classes=classes))
        super().__init__(
            data_root=data_root,
            test_mode=split != 'train' if test_mode is None else test_mode,
            metainfo=dict(targets=declared) | dict(metainfo or {}),
            **kwargs,
        )

    def load_data_list(self) -> list[dict]:
        """One dict per image: its path and label."""
        root = Path(self.data_root)
        folder = root / self.domain
        if not folder.is_dir():
            folder = root / self.domain.replace('_', ' ')
        samples: list[dict[str, Any]] = [
            dict(path=str(Path(folder, *Path(line.image).parts[1:])), label=line.label) for line in self._lines
        ]
        missing = [i for i, sample in enumerate(samples) if not Path(sample['path']).is_file()]
        if missing:
            raise FileNotFoundError(
                f'{self._lines[missing[0]].where}: there is no image {samples[missing[0]]["path"]}; {len(missing)} of '
                f'the {len(samples)} images of the split are missing'
            )
        return samples

    def load_sample(self, data_info: dict) -> dict:
        """See :meth:`MultiTaskDataset.load_sample`."""
        path = data_info['path']
        return dict(img=readers.read_picture_image(path), img_path=path, gt=dict(category=data_info['label']))

    def _read_splits(self, folder: Path) -> tuple[list[SplitLine], tuple[str, ...]]:
        """The lines of the split, and the names of the classes from all splits that are there."""
        paths = {split: folder / f'{self.domain}_{split}.txt' for split in SPLITS}
        by_split = {
            split: read_split(path, self.NUM_CLASSES)
            for split, path in paths.items()
            if split == self.split or path.is_file()
        }
        lines = [line for lines in by_split.values() for line in lines]
        for line in lines:
            if domain_folder(Path(line.image).parts[0]) != self.domain:
                raise ValueError(f'{line.where}: found {line.image}, expected a path below {self.domain}')
        return by_split[self.split], class_names(lines, self.NUM_CLASSES)


@DATASETS.register_module()
class Office31Dataset(OfficeDataset):
    """One domain of Office-31 (4110 images, 31 classes; Saenko et al., ECCV 2010): 'amazon', 'dslr' or 'webcam'.

    Images are in ``DOMAIN/images/CLASS`` below ``data_root``. For the arguments see :class:`OfficeDataset`.
    """

    METAINFO = dict(dataset_type='office31')
    FOLDER = 'office31'
    DOMAINS = ('amazon', 'dslr', 'webcam')
    NUM_CLASSES = 31
    OFFICIAL_COUNTS = dict(amazon=(1680, 552, 585), dslr=(287, 89, 122), webcam=(466, 149, 180))


@DATASETS.register_module()
class OfficeHomeDataset(OfficeDataset):
    """One domain of Office-Home (65 classes; Venkateswara et al., CVPR 2017): Art, Clipart, Product or Real_World.

    Images are in ``DOMAIN/CLASS`` below ``data_root``; the folder 'Real World' may keep its space. The published splits
    list 15588 images. For the arguments see :class:`OfficeDataset`.
    """

    METAINFO = dict(dataset_type='office_home')
    FOLDER = 'office_home'
    DOMAINS = ('Art', 'Clipart', 'Product', 'Real_World')
    NUM_CLASSES = 65
    OFFICIAL_COUNTS = dict(
        Art=(1435, 465, 527), Clipart=(2596, 846, 923), Product=(2635, 860, 944), Real_World=(2586, 846, 925)
    )
