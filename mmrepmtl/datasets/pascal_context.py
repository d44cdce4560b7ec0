import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mmrepmtl.datasets import readers
from mmrepmtl.datasets.folder_archive import FileSet, FolderArchiveDataset
from mmrepmtl.datasets.transforms.functional import renormalise, sample_nearest
from mmrepmtl.registry import DATASETS
from mmrepmtl.structures.kinds import VOID
from mmrepmtl.utils.morphology import thin

# 'val' is what all public results are measured on; there is no other test set.
LISTS = dict(train='train', val='val', test='val')

CLASSES = (
    'background', 'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow', 'diningtable',
    'dog', 'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa', 'train', 'tvmonitor')  # fmt: skip
PERSON = 15

# Not VOC's black, which stands for void in pictures.
BACKGROUND_COLOUR = [64, 64, 64]
PARTS = ('background', 'head', 'torso', 'upper arm', 'lower arm', 'upper leg', 'lower leg')
PARTS_PALETTE = [
    BACKGROUND_COLOUR,
    [230, 60, 60],
    [60, 160, 230],
    [250, 200, 60],
    [90, 200, 110],
    [160, 90, 200],
    [240, 130, 90],
]
# PASCAL-Part's names of a person's parts, merged into six as ASTMT does.
PART_IDS = {
    name: number
    for number, names in enumerate(
        (
            'head hair leye reye lear rear lebrow rebrow nose mouth',
            'torso neck',
            'luarm ruarm',
            'llarm rlarm lhand rhand',
            'luleg ruleg',
            'llleg rlleg lfoot rfoot',
        ),
        start=1,
    )
    for name in names.split()
}

# The PASCAL-Context classes (of 459, by number) whose pixels have a normal: those whose name is also one of NYUv2's 894
# classes, on which the network that made the normals was trained, without 'unknown', and tvmonitor (427).
NORMAL_CLASSES = (
    3, 4, 6, 9, 10, 11, 13, 15, 17, 18, 22, 23, 29, 30, 33, 34, 36, 37, 38, 39, 41, 43, 46, 49, 50, 51, 53, 55, 56, 59,
    61, 62, 65, 66, 68, 69, 72, 73, 78, 83, 84, 85, 87, 88, 95, 96, 101, 104, 105, 107, 111, 113, 115, 122, 124, 135,
    141, 142, 143, 146, 150, 154, 157, 158, 159, 165, 172, 174, 181, 183, 184, 191, 193, 195, 197, 199, 202, 213, 215,
    216, 219, 220, 223, 225, 228, 230, 232, 233, 238, 239, 242, 243, 246, 250, 251, 252, 255, 260, 261, 263, 269, 272,
    273, 275, 281, 283, 284, 285, 286, 287, 288, 290, 291, 292, 293, 295, 304, 307, 309, 310, 314, 315, 319, 323, 329,
    330, 331, 336, 342, 345, 349, 350, 351, 352, 355, 357, 368, 370, 371, 374, 379, 380, 383, 384, 397, 401, 403, 405,
    407, 408, 411, 412, 413, 414, 417, 419, 421, 423, 427, 429, 430, 432, 440, 441, 442, 443, 444, 446, 454,
    457)  # fmt: skip

# Folders of the layout that tools/dataset_converters/pascal_context.py writes.
FOLDERS = ('image', 'semseg', 'human_parts', 'saliency', 'edge', 'normal')


def voc_palette(count: int) -> list[list[int]]:
    """PASCAL VOC's colours: bits 0, 3, 6, ... of a class number are the highest bits of red; then green, blue."""
    return [[sum((number >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8)) for channel in range(3)]
            for number in range(count)]  # fmt: skip


@DATASETS.register_module()
class PASCALContextDataset(FolderArchiveDataset):
    """PASCAL-Context for five tasks (4998 train, 5105 val), as Maninis et al. put it together (ASTMT, CVPR 2019).

    Targets: ``semseg``, VOC's 21 classes; ``human_parts``, 6 parts and background, an image without a person that has
    parts is unlabelled; ``saliency``, yes where the distilled map is above 0.5; ``edge``, the boundaries of the 459
    classes (:func:`label_boundaries`); ``normal``, distilled, 2v / 255 - 1, valid where PASCAL-Context has a class that
    NYUv2 has too. The distilled targets are outputs of networks; the normals' axes are as stored, x points to the
    right.

    Two layouts below ``data_root``:

    * ``archive``, the one that circulates: ``JPEGImages/<id>.jpg``, ``ImageSets/Context/{train,val}.txt``,
      ``pascal-context/trainval/<id>.mat`` (LabelMap), ``human_parts/<id>.mat``,
      ``semseg/{VOC12,pascal-context}/<id>.png`` (VOC12 first), ``sal_distill/<id>.png``, ``normals_distill/<id>.png``.
      ``ImageSets/Parts/{train,val}.txt``, which says which images show people, saves time and may be missing.
    * ``prepared``, what ``tools/dataset_converters/pascal_context.py`` makes of it, without .mat files:
      ``conversion.json`` and ``{train,val}/{image,semseg,human_parts,saliency,edge,normal}/<id>.{jpg,png}``. 'auto'
      takes it where there is a ``conversion.json``.

    Args:
        data_root (str, optional): The folder of the data; None takes ``pascal_context`` in the folder that the
            environment variable ``MMREPMTL_DATA`` names.
        split (str): 'train'; 'val' and 'test' are the same 5105 images. Defaults to 'train'.
        layout (str): 'prepared', 'archive' or 'auto'. Defaults to 'auto'.
        resize_targets (bool): Fit targets of another size than their image by the nearest pixel, as public loaders do,
            instead of an error. Defaults to False.
        test_mode (bool, optional): None means all splits but 'train'.
        **kwargs: Those of ``FolderArchiveDataset`` (``allow_unlabelled``) and ``MultiTaskDataset``: ``targets``,
            ``pipeline``, ``indices``, ``seed``, ``check``.

    Raises:
        ValueError: On an unknown split or layout, no ``data_root``, or a file that holds something else than it should.
        FileNotFoundError: If folders or files are missing, naming what was expected.
    """

    METAINFO = dict(
        dataset_type='pascal_context',
        targets=dict(
            semseg=dict(
                kind='segmentation', classes=CLASSES, palette=[BACKGROUND_COLOUR, *voc_palette(len(CLASSES))[1:]]
            ),
            human_parts=dict(kind='segmentation', classes=PARTS, palette=PARTS_PALETTE),
            saliency=dict(kind='binary'),
            edge=dict(kind='binary', thin=True),
            normal=dict(kind='normals'),
        ),
    )
    LAYOUTS = ('prepared', 'archive')
    OFFICIAL_COUNTS = dict(train=4998, val=5105, test=5105)

    def __init__(
        self,
        data_root: str | None = None,
        split: str = 'train',
        layout: str = 'auto',
        resize_targets: bool = False,
        test_mode: bool | None = None,
        **kwargs: Any,
    ) -> None:
        if split not in LISTS:
            raise ValueError(f"PASCALContextDataset: split is {split!r}, expected 'train', 'val' or 'test'")
        self.split = split
        self.resize_targets = resize_targets
        data_root = readers.resolve_root('PASCALContextDataset', data_root, 'pascal_context')
        if layout == 'auto':
            layout = 'prepared' if Path(data_root, 'conversion.json').is_file() else 'archive'
        super().__init__(
            data_root=data_root,
            layout=layout,
            test_mode=split != 'train' if test_mode is None else test_mode,
            **kwargs,
        )

    def layouts(self) -> Mapping[str, Mapping[str, FileSet]]:
        """See :meth:`FolderArchiveDataset.layouts`."""
        root = Path(self.data_root)
        return dict(prepared=prepared_files(root, LISTS[self.split]), archive=archive_files(root, LISTS[self.split]))

    def select_names(self, names: list[str]) -> list[str]:
        """The samples of the split's list, or of the conversion's.

        Raises:
            FileNotFoundError: If the list or an image of it is missing.
        """
        root, split = Path(self.data_root), LISTS[self.split]
        prepared = self.layout == 'prepared'
        listed = prepared_names(root, split) if prepared else split_names(root, split)
        there = set(names)
        missing = [name for name in listed if name not in there]
        if missing:
            where = root / split / 'image' if prepared else root / 'JPEGImages'
            raise FileNotFoundError(
                f'PASCALContextDataset: {len(missing)} of {len(listed)} images are missing in {where}, the first is '
                f'{missing[0]}.jpg' + ('; run the converter again, it goes on where it ended' if prepared else '')
            )
        return listed

    def load_sample(self, data_info: dict) -> dict:
        """See :meth:`MultiTaskDataset.load_sample`."""
        sample = super().load_sample(data_info)
        size = sample['img'].shape[:2]
        gt = {}
        for name, value in sample['gt'].items():
            if value is None or (name == 'human_parts' and (value == VOID).all()):
                continue
            if value.shape[:2] != size and not self.resize_targets:
                raise ValueError(
                    f'{sample["gt_paths"][name]}: target {name!r} has size {value.shape[:2]}, expected {size}, that of '
                    f'{sample["img_path"]}; pass resize_targets=True to fit it by the nearest pixel'
                )
            gt[name] = value if value.shape[:2] == size else sample_nearest(value, size)
        return sample | dict(gt=gt)


@dataclass(frozen=True)
class PreferredFiles(FileSet):
    """Files that are looked for in two folders; the first one counts.

    Args:
        first: That folder.
    """

    first: Path = Path()

    def paths(self) -> dict[str, Path]:
        """{name of the sample: file}; the file in ``first`` where there is one."""
        return super().paths() | readers.list_files(self.first, self.endings)


def archive_files(root: Path, split: str) -> dict[str, FileSet]:
    """{'image' or target: its files} of the archive that circulates."""
    label_maps = root / 'pascal-context' / 'trainval'
    read_parts = partial(read_human_parts, without_people=names_without_people(root, split))
    return dict(
        image=FileSet(root / 'JPEGImages', ('.jpg',), readers.read_picture_image),
        semseg=PreferredFiles(
            root / 'semseg' / 'pascal-context', ('.png',), read_classes, first=root / 'semseg' / 'VOC12'
        ),
        human_parts=FileSet(root / 'human_parts', ('.mat',), read_parts),
        saliency=FileSet(root / 'sal_distill', ('.png',), read_saliency),
        edge=FileSet(label_maps, ('.mat',), read_edges),
        normal=FileSet(root / 'normals_distill', ('.png',), partial(read_distilled_normals, label_maps=label_maps)),
    )


def prepared_files(root: Path, split: str) -> dict[str, FileSet]:
    """{'image' or target: its files} of the converter's layout."""
    labels = {
        name: FileSet(root / split / name, ('.png',), readers.read_picture_label)
        for name in ('semseg', 'human_parts', 'saliency', 'edge')
    }
    image = FileSet(root / split / 'image', ('.jpg',), readers.read_picture_image)
    return dict(image=image, **labels, normal=FileSet(root / split / 'normal', ('.png',), read_normals))


def split_names(root: Path, split: str) -> list[str]:
    """The images of ``ImageSets/Context/{split}.txt``.

    Raises:
        FileNotFoundError: If there is no such list.
        ValueError: If it is empty or names an image twice.
    """
    file = root / 'ImageSets' / 'Context' / f'{split}.txt'
    if not file.is_file():
        raise FileNotFoundError(f'PASCALContextDataset: no list {file}, expected one image id per line')
    names = file.read_text(encoding='utf-8').split()
    if not names or len(set(names)) != len(names):
        raise ValueError(f'{file}: found {len(names)} ids, {len(set(names))} different ones; expected one per line')
    return names


def prepared_names(root: Path, split: str) -> list[str]:
    """The images that a conversion was to write, from ``conversion.json``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds something else.
    """
    file = root / 'conversion.json'
    try:
        return list(json.loads(file.read_text(encoding='utf-8'))['samples'][split])
    except FileNotFoundError:
        raise FileNotFoundError(
            f'PASCALContextDataset: no file {file}, which tools/dataset_converters/pascal_context.py writes'
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{file}: cannot be read ({error!r}), expected the ids of split {split!r}') from error


def names_without_people(root: Path, split: str) -> frozenset[str]:
    """The images that ``ImageSets/Parts/{split}.txt``, JSON {id: classes of its objects}, lists without a person.

    Empty where there is no such file: then each image's own annotation says it.

    Raises:
        ValueError: If it holds something else.
    """
    file = root / 'ImageSets' / 'Parts' / f'{split}.txt'
    if not file.is_file():
        return frozenset()
    try:
        classes = json.loads(file.read_text(encoding='utf-8'))
        return frozenset(name for name, found in classes.items() if PERSON not in found)
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f'{file}: found no JSON of the form {{"<id>": [class numbers]}} ({error})') from error


def read_classes(path: str) -> np.ndarray:
    """Class ids (H, W) int64, 255 void, of a grey or palette PNG."""
    return readers.read_picture_indices(path).astype(np.int64)


def read_label_map(path: str) -> np.ndarray:
    """PASCAL-Context's 459 classes (H, W) of a .mat file.

    Raises:
        ValueError: If there is no two-dimensional LabelMap.
    """
    expected = 'a PASCAL-Context annotation with LabelMap (H, W)'
    label_map = readers.read_mat(path, expected).get('LabelMap')
    if not isinstance(label_map, np.ndarray) or label_map.ndim != 2 or label_map.dtype.kind not in 'iuf':
        raise ValueError(f'{path}: found {getattr(label_map, "shape", "no LabelMap")}, expected {expected}')
    return label_map


def label_boundaries(label_map: np.ndarray) -> np.ndarray:
    """The boundaries between classes as thin lines, (H, W) int64 0 and 1, as ASTMT derives them.

    A pixel is a candidate where the discrete Laplacian of the class numbers is not 0: its four neighbours' numbers (the
    map is mirrored at its border, without repeating it) do not add up to four times its own. So both sides of a
    boundary are candidates, except for the rare pixel whose neighbours' differences cancel. The candidates are then
    thinned to lines of one pixel (:func:`mmrepmtl.utils.morphology.thin`). SEISM's ground truth marks one side of each
    boundary instead, which is at most a pixel away.
    """
    laplacian = cv2.Laplacian(label_map.astype(np.float64), cv2.CV_64F, ksize=1, borderType=cv2.BORDER_REFLECT_101)
    return thin(laplacian != 0).astype(np.int64)


def read_edges(path: str) -> np.ndarray:
    """:func:`label_boundaries` of a PASCAL-Context annotation."""
    return label_boundaries(read_label_map(path))


def read_saliency(path: str) -> np.ndarray:
    """(H, W) int64: 1 where the grey picture is above 0.5 of its range, else 0."""
    grey = readers.read_picture(path, cv2.IMREAD_UNCHANGED, np.uint8, 'an 8-bit grey PNG of saliency')
    return (grey > 127).astype(np.int64)


def read_coded_normals(path: str) -> np.ndarray:
    """The numbers (H, W, 3) uint8 RGB of a picture of normals."""
    coded = readers.read_picture(path, cv2.IMREAD_COLOR, np.uint8, 'an 8-bit RGB picture of normals')
    return cv2.cvtColor(coded, cv2.COLOR_BGR2RGB)


def decode_normals(coded: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """n = 2v / 255 - 1 renormalised, (H, W, 3) float32; 0 0 0 where not ``valid`` (H, W)."""
    return renormalise(coded.astype(np.float32) * np.float32(2 / 255) - 1, valid)


def valid_coded_normals(coded: np.ndarray, path: str, label_maps: Path) -> np.ndarray:
    """Mask (H, W) of the pixels of a distilled picture that have a normal, from the image's LabelMap.

    Raises:
        ValueError: If the LabelMap has another size.
    """
    file = label_maps / f'{Path(path).stem}.mat'
    label_map = read_label_map(str(file))
    if label_map.shape != coded.shape[:2]:
        raise ValueError(f'{file}: LabelMap has size {label_map.shape}, expected {coded.shape[:2]}, that of {path}')
    return np.isin(label_map, NORMAL_CLASSES)


def read_distilled_normals(path: str, label_maps: Path) -> np.ndarray:
    """Normals (H, W, 3) of ``normals_distill``, 0 0 0 where the LabelMap has none of ``NORMAL_CLASSES``."""
    coded = read_coded_normals(path)
    return decode_normals(coded, valid_coded_normals(coded, path, label_maps))


def read_normals(path: str) -> np.ndarray:
    """Normals (H, W, 3) of the prepared layout, coded alike, with black (0, 0, 0) for invalid."""
    coded = read_coded_normals(path)
    return decode_normals(coded, np.asarray(coded.any(axis=-1)))


def read_human_parts(path: str, without_people: frozenset[str] = frozenset()) -> np.ndarray | None:
    """Parts of people (H, W) int64 of a PASCAL-Part annotation; None without a person that has parts.

    The later mask in the file counts where two overlap.

    Args:
        path: The .mat file.
        without_people: Names of files that need not be looked into.

    Raises:
        ValueError: If the file holds something else, or a part's name is unknown.
    """
    if Path(path).stem in without_people:
        return None
    expected = "a PASCAL-Part annotation: anno with objects of 'class_ind', 'mask' and 'parts'"
    mat = readers.read_mat(path, expected)
    target = None
    try:
        for thing in mat['anno'][0, 0]['objects'].ravel():
            if int(thing['class_ind'].item()) != PERSON or thing['parts'].size == 0:
                continue
            target = np.zeros(thing['mask'].shape, dtype=np.int64) if target is None else target
            for part in thing['parts'].ravel():
                target[part['mask'].astype(bool)] = PART_IDS[str(part['part_name'].item())]
    except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f'{path}: cannot be read ({error!r}), expected {expected}') from error
    return target if target is not None and target.any() else None
