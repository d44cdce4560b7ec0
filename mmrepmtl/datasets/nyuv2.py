import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mmrepmtl.datasets.base import MultiTaskDataset
from mmrepmtl.datasets.checks import VOID
from mmrepmtl.datasets.transforms.functional import renormalise
from mmrepmtl.registry import DATASETS

DATA_ENV = 'MMREPMTL_DATA'

# The 13 classes of Couprie et al. (2013), "Indoor semantic segmentation using depth information", alphabetical.
CLASSES = ('bed', 'books', 'ceiling', 'chair', 'floor', 'furniture', 'objects', 'picture', 'sofa', 'table', 'tv',
           'wall', 'window')
PALETTE = [[0, 92, 230], [230, 140, 40], [190, 230, 250], [220, 60, 60], [150, 110, 80], [120, 70, 180], [245, 215, 60],
           [230, 110, 190], [40, 170, 120], [170, 40, 90], [30, 40, 90], [200, 200, 190], [90, 200, 230]]

# Folder and file endings by target; the image comes first and decides which samples there are.
FOLDERS = dict(image='image', semseg='label', depth='depth', normal='normal')
SUFFIXES = dict(
    npy=dict.fromkeys(FOLDERS, ('.npy', )),
    image=dict(image=('.jpg', '.png'), semseg=('.png', ), depth=('.png', ), normal=('.jpg', '.png')))
SPLIT_FOLDERS = dict(train=('train', ), val=('val', 'test'), test=('test', 'val'))

# Shorter vectors of the 8-bit layout are no direction but the compression noise of an invalid (128, 128, 128).
SHORTEST_JPEG_NORMAL = 0.5


@DATASETS.register_module()
class NYUv2Dataset(MultiTaskDataset):
    """NYUv2's labelled images (795 train, 654 test): 13 classes, depth, surface normals (Silberman et al., ECCV 2012).

    Two layouts below ``data_root``, samples are ordered by their number:

    * ``npy``, the archive of MTAN and LibMTL: ``{train,val}/{image,label,depth,normal}/<i>.npy``; image (H, W, 3) float
      in [0, 1]; label (H, W), possibly float, -1 void; depth (H, W, 1) metres, 0 invalid; normal (H, W, 3), 0 0 0
      invalid.
    * ``image``: ``{train,test}/{image,label,depth,normal}/<i>.{jpg,png}``; label PNG, 255 void; depth PNG, 16 bit,
      millimetres; normal 8 bit, n = (v - 128) / 127.

    Normals have axes (right, into the scene, up) and are renormalised on loading.

    Args:
        data_root (str, optional): The folder of the data; None takes ``nyuv2`` in the folder that the environment
            variable ``MMREPMTL_DATA`` names.
        split (str): 'train'; 'val' and 'test' are the same 654 images. Defaults to 'train'.
        layout (str): 'npy', 'image', or 'auto' which looks at the files. Defaults to 'auto'.
        allow_unlabelled (bool): Whether a missing target file means "unlabelled" instead of an error. False by default.
        test_mode (bool, optional): None means all splits but 'train'.
        **kwargs: Those of ``MultiTaskDataset``: ``targets`` (of 'semseg', 'depth', 'normal'), ``pipeline``, ``indices``
            (the first n samples, or a list of positions), ``seed``, ``check``.

    Raises:
        ValueError: On an unknown split or layout, no ``data_root``, or a file that holds something else than it should.
        FileNotFoundError: If folders or files are missing, naming what was expected.
    """

    METAINFO = dict(
        dataset_type='nyuv2',
        targets=dict(
            semseg=dict(kind='segmentation', classes=CLASSES, palette=PALETTE),
            depth=dict(kind='depth'),
            normal=dict(kind='normals')))

    def __init__(self,
                 data_root: str | None = None,
                 split: str = 'train',
                 layout: str = 'auto',
                 allow_unlabelled: bool = False,
                 test_mode: bool | None = None,
                 **kwargs: Any) -> None:
        if split not in SPLIT_FOLDERS:
            raise ValueError(f"NYUv2Dataset: split is {split!r}, expected 'train', 'val' or 'test'")
        if layout not in ('auto', *SUFFIXES):
            raise ValueError(f"NYUv2Dataset: layout is {layout!r}, expected 'auto', 'npy' or 'image'")
        self.split = split
        self.layout = layout
        self.allow_unlabelled = allow_unlabelled
        test_mode = split != 'train' if test_mode is None else test_mode
        super().__init__(data_root=_resolve_root(data_root), test_mode=test_mode, **kwargs)

    def load_data_list(self) -> list[dict]:
        """One dict of paths per sample: ``image`` and the targets' names."""
        folder = self._split_folder()
        layout, images = self._find_images(folder / FOLDERS['image'])
        paths = {name: _list_files(folder / FOLDERS[name], SUFFIXES[layout][name]) for name in self.targets}
        if not self.allow_unlabelled:
            for name, found in paths.items():
                self._expect_all(folder / FOLDERS[name], SUFFIXES[layout][name], images, found)
        return [dict(
            layout=layout,
            paths=dict(image=str(images[number])) | {
                name: str(found[number]) for name, found in paths.items() if number in found
            }) for number in sorted(images, key=lambda stem: (len(stem), stem))]

    def load_sample(self, data_info: dict) -> dict:
        """See :meth:`MultiTaskDataset.load_sample`."""
        paths = dict(data_info['paths'])
        readers = _READERS[data_info['layout']]
        values = {name: readers[name](path) for name, path in paths.items()}
        return dict(img=values.pop('image'), img_path=paths['image'], gt=values, gt_paths=paths)

    def _split_folder(self) -> Path:
        root = Path(self.data_root)
        candidates = [root / name for name in SPLIT_FOLDERS[self.split]]
        for folder in candidates:
            if folder.is_dir():
                return folder
        raise FileNotFoundError(f'NYUv2Dataset: no folder {" or ".join(map(str, candidates))} for split '
                                f'{self.split!r}; data_root must hold {{train,val}} or {{train,test}}, each with the '
                                f'folders {", ".join(FOLDERS.values())}')

    def _find_images(self, folder: Path) -> tuple[str, dict[str, Path]]:
        layouts = list(SUFFIXES) if self.layout == 'auto' else [self.layout]
        for layout in layouts:
            images = _list_files(folder, SUFFIXES[layout]['image'])
            if images:
                return layout, images
        endings = [f'<i>{ending}' for layout in layouts for ending in SUFFIXES[layout]['image']]
        raise FileNotFoundError(f'NYUv2Dataset: no images in {folder}, expected files {" or ".join(endings)} '
                                f'(layout {self.layout!r})')

    @staticmethod
    def _expect_all(folder: Path, endings: Sequence[str], images: dict[str, Path], found: dict[str, Path]) -> None:
        missing = sorted(set(images) - set(found))
        if missing:
            raise FileNotFoundError(
                f'NYUv2Dataset: {len(missing)} of {len(images)} files are missing in {folder}, the first is '
                f'{missing[0]}{endings[0]}; leave the target out with targets=[...], or pass allow_unlabelled=True')


def _resolve_root(data_root: str | None) -> str:
    if data_root is not None:
        return str(Path(data_root).expanduser())
    parent = os.environ.get(DATA_ENV)
    if not parent:
        raise ValueError(f'NYUv2Dataset: pass data_root, or set the environment variable {DATA_ENV} to the folder that '
                         'holds nyuv2')
    return str(Path(parent).expanduser() / 'nyuv2')


def _list_files(folder: Path, endings: Sequence[str]) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    return {path.stem: path for path in folder.iterdir() if path.suffix.lower() in endings}


def _read_picture(path: str, flags: int, dtype: Any, expected: str) -> np.ndarray:
    array = cv2.imread(path, flags)
    if array is None:
        raise ValueError(f'{path}: cannot be read as an image, expected {expected}')
    channels = 3 if flags == cv2.IMREAD_COLOR else 2
    if array.dtype != dtype or array.ndim != channels:
        raise ValueError(f'{path}: found {array.shape} {array.dtype}, expected {expected}')
    return array


def _picture_image(path: str) -> np.ndarray:
    img = _read_picture(path, cv2.IMREAD_COLOR, np.uint8, 'an RGB image')
    return np.divide(cv2.cvtColor(img, cv2.COLOR_BGR2RGB), 255, dtype=np.float32)


def _picture_label(path: str) -> np.ndarray:
    return _read_picture(path, cv2.IMREAD_UNCHANGED, np.uint8, 'an 8-bit grey PNG of class ids').astype(np.int64)


def _picture_depth(path: str) -> np.ndarray:
    depth = _read_picture(path, cv2.IMREAD_UNCHANGED, np.uint16, 'a 16-bit grey PNG of millimetres')
    return np.divide(depth, 1000, dtype=np.float32)


def _picture_normal(path: str) -> np.ndarray:
    coded = _read_picture(path, cv2.IMREAD_COLOR, np.uint8, 'an 8-bit image of normals')
    # n = (v - 128) / 127; the division is left to the renormalisation.
    normals = np.subtract(cv2.cvtColor(coded, cv2.COLOR_BGR2RGB), 128, dtype=np.float32)
    return renormalise(normals, shortest=127 * SHORTEST_JPEG_NORMAL)


def _read_npy(path: str, expected: str) -> np.ndarray:
    try:
        # No pickles: they could run code.
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f'{path}: cannot be read as an array ({error}), expected {expected}') from error


def _npy_image(path: str) -> np.ndarray:
    img = _read_npy(path, '(H, W, 3) float in [0, 1]')
    if not np.issubdtype(img.dtype, np.floating):
        raise ValueError(f'{path}: found {img.shape} {img.dtype}, expected (H, W, 3) float in [0, 1]')
    return img.astype(np.float32)


def _npy_label(path: str) -> np.ndarray:
    stored = _read_npy(path, '(H, W) class ids, -1 void')
    # NaN and infinity have no integer; -2 is no label, so they are found below.
    label = np.where(np.isfinite(stored), stored, -2).astype(np.int64)
    if (label != stored).any():
        raise ValueError(f'{path}: found values that are no whole numbers, expected class ids, -1 for void')
    label[label == -1] = VOID
    return label


def _npy_depth(path: str) -> np.ndarray:
    depth = _read_npy(path, '(H, W, 1) metres').astype(np.float32)
    return depth[..., 0] if depth.ndim == 3 and depth.shape[2] == 1 else depth


def _npy_normal(path: str) -> np.ndarray:
    normals = _read_npy(path, '(H, W, 3) normals').astype(np.float32)
    if normals.ndim != 3 or normals.shape[2] != 3:
        raise ValueError(f'{path}: found {normals.shape}, expected (H, W, 3) normals')
    return renormalise(normals)


_READERS: dict[str, dict[str, Callable[[str], np.ndarray]]] = dict(
    npy=dict(image=_npy_image, semseg=_npy_label, depth=_npy_depth, normal=_npy_normal),
    image=dict(image=_picture_image, semseg=_picture_label, depth=_picture_depth, normal=_picture_normal))
