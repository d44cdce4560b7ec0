from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mmrepmtl.datasets import readers
from mmrepmtl.datasets.folder_archive import FileSet, FolderArchiveDataset
from mmrepmtl.registry import DATASETS
from mmrepmtl.structures.kinds import VOID

# The 19 classes that are evaluated, in the order of their trainIds: name, labelId, category, colour. From the label
# table of Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016.
LABELS = (
    ('road', 7, 'flat', (128, 64, 128)),
    ('sidewalk', 8, 'flat', (244, 35, 232)),
    ('building', 11, 'construction', (70, 70, 70)),
    ('wall', 12, 'construction', (102, 102, 156)),
    ('fence', 13, 'construction', (190, 153, 153)),
    ('pole', 17, 'object', (153, 153, 153)),
    ('traffic light', 19, 'object', (250, 170, 30)),
    ('traffic sign', 20, 'object', (220, 220, 0)),
    ('vegetation', 21, 'nature', (107, 142, 35)),
    ('terrain', 22, 'nature', (152, 251, 152)),
    ('sky', 23, 'sky', (70, 130, 180)),
    ('person', 24, 'human', (220, 20, 60)),
    ('rider', 25, 'human', (255, 0, 0)),
    ('car', 26, 'vehicle', (0, 0, 142)),
    ('truck', 27, 'vehicle', (0, 0, 70)),
    ('bus', 28, 'vehicle', (0, 60, 100)),
    ('train', 31, 'vehicle', (0, 80, 100)),
    ('motorcycle', 32, 'vehicle', (0, 0, 230)),
    ('bicycle', 33, 'vehicle', (119, 11, 32)),
)
HIGHEST_LABEL_ID = 33
# In the order of the official category ids 1 to 7. A category is drawn in the colour of its first class but one: poles
# are as grey as buildings.
CATEGORIES = ('flat', 'construction', 'object', 'nature', 'sky', 'human', 'vehicle')
CLASSES = {7: CATEGORIES, 19: tuple(name for name, *_ in LABELS)}
PALETTES = {
    7: [[128, 64, 128], [70, 70, 70], [220, 220, 0], [107, 142, 35], [70, 130, 180], [220, 20, 60], [0, 0, 142]],
    19: [list(colour) for *_, colour in LABELS],
}
LABEL_FOLDERS = {7: ('label_7', 'label'), 19: ('label_19',)}
SPLIT_FOLDERS = dict(train='train', val='val', test='val')

# 16-bit PNG to the archive's unit: its largest value, 0.4922, is the largest one of the raw files, 32257, over 65535.
DISPARITY_SCALE = 65535


def label_lookup(num_classes: int, highest: int = HIGHEST_LABEL_ID) -> np.ndarray:
    """Class of each labelId 0 to ``highest``, (highest + 1,) int64; 255 for the ids that are not evaluated."""
    lookup = np.full(highest + 1, VOID, np.int64)
    for train_id, (_, label_id, category, _) in enumerate(LABELS):
        lookup[label_id] = train_id if num_classes == 19 else CATEGORIES.index(category)
    return lookup


def classes_of_label_ids(ids: np.ndarray, lookup: np.ndarray, path: str) -> np.ndarray:
    """Replaces labelIds (H, W) by classes, (H, W) int64, 255 void.

    Raises:
        ValueError: Naming ``path`` and the ids that ``lookup`` does not have.
    """
    if int(ids.max()) >= len(lookup):
        wrong = np.unique(ids[ids >= len(lookup)])
        raise ValueError(f'{path}: found label ids {wrong[:5].tolist()}, expected labelIds from 0 to {len(lookup) - 1}')
    return lookup[ids]


class ReadLabelIds:
    """Reader of a PNG of labelIds, as 7 or 19 classes, (H, W) int64, 255 void.

    The way is labelIds -> 19 trainIds -> 7 categories, so what is not evaluated among the 19 (parking, guard rail,
    caravan, ...) is void among the 7 as well.
    """

    def __init__(self, num_classes: int, highest: int = HIGHEST_LABEL_ID) -> None:
        self.lookup = label_lookup(num_classes, highest)

    def __call__(self, path: str) -> np.ndarray:
        return classes_of_label_ids(readers.read_picture_indices(path), self.lookup, path)


def read_disparity(path: str) -> np.ndarray:
    """A raw disparity PNG p, 0 invalid, as inverse depth p / 65535, (H, W) float32, the archive's unit."""
    disparity = readers.read_picture(
        path, cv2.IMREAD_UNCHANGED, np.uint16, 'a 16-bit grey PNG of disparities (256 d + 1, 0 invalid)'
    )
    return np.divide(disparity, DISPARITY_SCALE, dtype=np.float32)


@DATASETS.register_module()
class CityscapesDataset(FolderArchiveDataset):
    """Cityscapes (2975 train, 500 validation): 7 or 19 classes and inverse depth (Cordts et al., CVPR 2016).

    Two layouts below ``data_root``:

    * ``npy``, the archive of MTAN: ``{train,val}/{image,label_7,label_19,depth}/<i>.npy``; the 7-class labels are in
      ``label`` in LibMTL's copy. Image (H, W, 3) float in [0, 1]; label (H, W), possibly float, -1 void; depth
      (H, W, 1) inverse depth, 0 invalid.
    * ``raw``, the official download: ``leftImg8bit/{train,val}/<city>/<name>_leftImg8bit.png``,
      ``gtFine/.../<name>_gtFine_labelIds.png`` and ``disparity/.../<name>_disparity.png``, all 2048 x 1024 (resize them
      in the pipeline, or convert them with ``tools/dataset_converters/cityscapes.py``).

    **Depth is inverse depth**, declared ``inverse=True`` so that augmentation multiplies it: v = p / 65535, with p the
    16-bit number of the official disparity file. The disparity in pixels at a width of 2048 is d = (p - 1) / 256 =
    (65535 v - 1) / 256, and with the camera's focal length (about 2262 pixels) and baseline (about 0.2 m) metres are
    focal x baseline / d. p = 1, infinitely far, is valid (v = 1.5e-5), p = 0 is not. Relative errors against such
    values are ratios of tens, not percentages: the published "rel. err." of 28 to 45 is this. The archive's makers only
    say that it is the official disparity unprocessed; the scale is inferred from its largest value.

    The 7 classes are the categories of the 19, and all else is void.

    Args:
        data_root (str, optional): The folder of the data; None takes ``cityscapes`` in the folder that the environment
            variable ``MMREPMTL_DATA`` names.
        split (str): 'train'; 'val' and 'test' are the same 500 images (the official test set has no public labels).
        num_classes (int): 7 (the paper's) or 19. Defaults to 7.
        layout (str): 'npy', 'raw', or 'auto' which looks at the files. Defaults to 'auto'.
        test_mode (bool, optional): None means all splits but 'train'.
        **kwargs: Those of ``FolderArchiveDataset`` (``allow_unlabelled``) and ``MultiTaskDataset``: ``targets`` (of
            'semseg', 'depth'), ``pipeline``, ``indices``, ``seed``, ``check``.

    Raises:
        ValueError: On an unknown split, layout or number of classes, no ``data_root``, or a file that holds something
            else than it should.
        FileNotFoundError: If folders or files are missing, naming what was expected.
    """

    METAINFO = dict(dataset_type='cityscapes')
    LAYOUTS = ('npy', 'raw')
    OFFICIAL_COUNTS = dict(train=2975, val=500, test=500)

    def __init__(
        self,
        data_root: str | None = None,
        split: str = 'train',
        num_classes: int = 7,
        test_mode: bool | None = None,
        metainfo: Mapping | None = None,
        **kwargs: Any,
    ) -> None:
        if split not in SPLIT_FOLDERS:
            raise ValueError(f"CityscapesDataset: split is {split!r}, expected 'train', 'val' or 'test'")
        if num_classes not in CLASSES:
            raise ValueError(f'CityscapesDataset: num_classes is {num_classes!r}, expected 7 or 19')
        self.split = split
        self.num_classes = num_classes
        super().__init__(
            data_root=readers.resolve_root('CityscapesDataset', data_root, 'cityscapes'),
            test_mode=split != 'train' if test_mode is None else test_mode,
            metainfo=dict(targets=declare_targets(num_classes)) | dict(metainfo or {}),
            **kwargs,
        )

    def layouts(self) -> Mapping[str, Mapping[str, FileSet]]:
        """See :meth:`FolderArchiveDataset.layouts`."""
        root, split = Path(self.data_root), SPLIT_FOLDERS[self.split]
        return dict(npy=self._archive_files(root / split), raw=raw_files(root, split, self.num_classes))

    def _archive_files(self, folder: Path) -> dict[str, FileSet]:
        names = [folder / name for name in LABEL_FOLDERS[self.num_classes]]
        labels = next((name for name in names if name.is_dir()), names[0])
        wanted = 'semseg' in self.targets and not self.allow_unlabelled and self.layout != 'raw'
        if wanted and (folder / 'image').is_dir() and not labels.is_dir():
            there = sorted(child.name for child in folder.iterdir() if child.is_dir())
            raise FileNotFoundError(
                f'CityscapesDataset: num_classes={self.num_classes} needs the folder {" or ".join(map(str, names))}, '
                f'there are only {", ".join(there)}'
            )
        return dict(
            image=FileSet(folder / 'image', ('.npy',), readers.read_npy_image),
            semseg=FileSet(labels, ('.npy',), readers.read_npy_label),
            depth=FileSet(folder / 'depth', ('.npy',), readers.read_npy_depth),
        )


def declare_targets(num_classes: int) -> dict[str, dict]:
    """The declarations of Cityscapes' targets with 7 or 19 classes, see ``MultiTaskDataset``."""
    return dict(
        semseg=dict(kind='segmentation', classes=CLASSES[num_classes], palette=PALETTES[num_classes]),
        depth=dict(kind='depth', inverse=True),
    )


def raw_files(root: Path, split: str, num_classes: int) -> dict[str, FileSet]:
    """The files of the official download, for the image and each target."""
    return dict(
        image=FileSet(root / 'leftImg8bit' / split, ('_leftImg8bit.png',), readers.read_picture_image, nested=True),
        semseg=FileSet(root / 'gtFine' / split, ('_gtFine_labelIds.png',), ReadLabelIds(num_classes), nested=True),
        depth=FileSet(root / 'disparity' / split, ('_disparity.png',), read_disparity, nested=True),
    )
