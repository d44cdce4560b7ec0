from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmrepmtl.datasets import readers
from mmrepmtl.datasets.cityscapes import CLASSES, PALETTES, ReadLabelIds
from mmrepmtl.datasets.folder_archive import FileSet, FolderArchiveDataset
from mmrepmtl.datasets.transforms.functional import sample_nearest
from mmrepmtl.registry import DATASETS

# GTA5's table of labels is that of Cityscapes with the licence plate, -1 there, as 34.
HIGHEST_LABEL_ID = 34
SPLITS = ('all', 'train', 'val', 'test')
# 60 of the official label maps differ from their images by a few pixels.
SIZE_TOLERANCE = 0.02


@DATASETS.register_module()
class GTA5Dataset(FolderArchiveDataset):
    """GTA5 (24966 images of a computer game): the 19 classes of Cityscapes (Richter et al., ECCV 2016).

    Two layouts below ``data_root``:

    * ``raw``, the official download: ``images/<id>.png`` and ``labels/<id>.png``, palette PNGs whose numbers (not
      colours) are the labelIds of Cityscapes, at about 1914 x 1052. A label map that differs from its image by up to
      2 % a side, as 60 do, is fitted by the nearest pixel.
    * ``image``, what ``tools/dataset_converters/gta5.py`` writes: ``image/<id>.png`` and ``label/<id>.png``, reduced,
      with the 19 classes as 8-bit grey, 255 void.

    Args:
        data_root (str, optional): The folder of the data; None takes ``gta5`` in the folder that the environment
            variable ``MMREPMTL_DATA`` names.
        split (str): 'all', or 'train', 'val' or 'test' of a ``split_file``. Defaults to 'all'.
        split_file (str, optional): Which images belong to the split: the official ``split.mat`` (12403 / 6382 / 6181),
            or a text file with one name per line (``00001``, ``images/00001.png``). Relative paths start at
            ``data_root``.
        test_mode (bool, optional): None means 'val' and 'test'.
        **kwargs: Those of ``FolderArchiveDataset`` (``layout``: 'raw', 'image' or 'auto'; ``allow_unlabelled``) and
            ``MultiTaskDataset``: ``targets`` (of 'semseg'), ``pipeline``, ``indices``, ``seed``, ``check``.

    Raises:
        ValueError: On an unknown split or layout, a split without ``split_file``, no ``data_root``, or a file that
            holds something else than it should.
        FileNotFoundError: If folders or files are missing, naming what was expected.
    """

    METAINFO = dict(
        dataset_type='gta5',
        targets=dict(semseg=dict(kind='segmentation', classes=CLASSES[19], palette=PALETTES[19])),
    )
    LAYOUTS = ('raw', 'image')
    # The parts are those of split.mat.
    OFFICIAL_COUNTS = dict(all=24966, train=12403, val=6382, test=6181)

    def __init__(
        self,
        data_root: str | None = None,
        split: str = 'all',
        split_file: str | None = None,
        test_mode: bool | None = None,
        **kwargs: Any,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"GTA5Dataset: split is {split!r}, expected 'all', 'train', 'val' or 'test'")
        if (split == 'all') != (split_file is None):
            raise ValueError(
                f'GTA5Dataset: split is {split!r} and split_file is {split_file!r}; the images are in one folder, so '
                "'train', 'val' and 'test' need a split_file, and 'all' takes none"
            )
        self.split = split
        self.split_file = split_file
        super().__init__(
            data_root=readers.resolve_root('GTA5Dataset', data_root, 'gta5'),
            test_mode=split in ('val', 'test') if test_mode is None else test_mode,
            **kwargs,
        )

    def layouts(self) -> Mapping[str, Mapping[str, FileSet]]:
        """See :meth:`FolderArchiveDataset.layouts`."""
        root = Path(self.data_root)
        converted = dict(
            image=FileSet(root / 'image', ('.png',), readers.read_picture_image),
            semseg=FileSet(root / 'label', ('.png',), readers.read_picture_label),
        )
        return dict(raw=raw_files(root), image=converted)

    def load_sample(self, data_info: dict) -> dict:
        """See :meth:`MultiTaskDataset.load_sample`."""
        sample = super().load_sample(data_info)
        size, label = sample['img'].shape[:2], sample['gt'].get('semseg')
        if label is not None and label.shape != size:
            check_size(label, size, sample['gt_paths']['semseg'], sample['img_path'])
            sample['gt']['semseg'] = sample_nearest(label, size)
        return sample

    def select_names(self, names: list[str]) -> list[str]:
        """The images of the split file, in the order of their names."""
        if self.split_file is None:
            return names
        path = Path(self.data_root) / Path(self.split_file).expanduser()
        listed = read_split(path, self.split)
        missing = sorted(listed - set(names))
        if missing:
            raise FileNotFoundError(
                f'GTA5Dataset: {len(missing)} of {len(listed)} images of {path} are missing in {self.data_root}, the '
                f'first is {missing[0]}.png'
            )
        return [name for name in names if name in listed]


def check_size(label: np.ndarray, size: tuple[int, int], path: str, image_path: str) -> None:
    """Refuses a label map whose size is not about that of its image, (H, W).

    Raises:
        ValueError: Naming both files and sizes.
    """
    if max(abs(a / b - 1) for a, b in zip(label.shape, size, strict=True)) > SIZE_TOLERANCE:
        raise ValueError(f'{path}: found {label.shape}, expected about {size}, the size of {image_path}')


def raw_files(root: Path) -> dict[str, FileSet]:
    """The files of the official download, for the image and the target."""
    return dict(
        image=FileSet(root / 'images', ('.png',), readers.read_picture_image),
        semseg=FileSet(root / 'labels', ('.png',), ReadLabelIds(19, HIGHEST_LABEL_ID)),
    )


def read_split(path: Path, split: str) -> set[str]:
    """Names of the images of a split, without their ending; ``path`` is split.mat or a text file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it does not name any image.
    """
    if not path.is_file():
        raise FileNotFoundError(f'GTA5Dataset: there is no split_file {path}')
    expected = 'the official split.mat, or a text file with one image name per line'
    if path.suffix.lower() != '.mat':
        names = {Path(line.strip()).stem for line in path.read_text(encoding='utf-8').splitlines() if line.strip()}
    else:
        contents = readers.read_mat(path, expected)
        if f'{split}Ids' not in contents:
            raise ValueError(f'{path}: found no variable {split}Ids, expected {expected}')
        names = {f'{int(number):05d}' for number in contents[f'{split}Ids'].ravel()}
    if not names:
        raise ValueError(f'{path}: names no image, expected {expected}')
    return names
