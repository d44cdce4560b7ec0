from pathlib import Path
from typing import Any

import numpy as np

from mmrepmtl.datasets.normals_from_depth import normals_from_depth
from mmrepmtl.datasets.readers import read_mat, require
from mmrepmtl.structures.kinds import VOID

FILE = 'nyu_depth_v2_labeled.mat'
NUM_LABELS, NUM_CLASSES_40, NUM_CLASSES_13 = 894, 40, 13
# The colour camera of the Kinect at 640 x 480, from the toolbox of the data set; half a pixel of the principal point,
# by which conventions differ, is 0.06 degrees.
FX, FY, CX, CY = 518.86, 519.47, 325.58, 253.74


class NYUv2Mat:
    """The official download of NYUv2's labelled set: ``nyu_depth_v2_labeled.mat`` and three small files beside it.

    ``nyu_depth_v2_labeled.mat`` (MATLAB 7.3, which is HDF5 with all axes reversed) holds the images, the depths with
    their holes filled in, and 894 labels; ``classMapping40.mat`` and ``class13Mapping.mat`` reduce the labels to 40 and
    then to 13 classes, ``splits.mat`` holds the official ids (from 1) of the two splits. The object holds no open file,
    so it can travel to other processes.

    Args:
        folder: The folder of the four files.

    Raises:
        FileNotFoundError: If one is missing.
        ValueError: If one holds something else than it should, naming the file and what was expected.
        ModuleNotFoundError: If h5py or scipy is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        self.path = folder / FILE
        if not self.path.is_file():
            raise FileNotFoundError(f'there is no file {self.path}, expected the labelled set of NYUv2 (2.8 GB)')
        self.count, self.size = self._check_shapes()
        self.lookup = _class_lookup(folder)
        self.splits = self._read_splits(folder / 'splits.mat')

    def read(self, number: int) -> dict[str, np.ndarray]:
        """Reads one image.

        Args:
            number: Its official id, from 1.

        Returns:
            dict: ``image`` (H, W, 3) float32 RGB in [0, 1], ``semseg`` (H, W) int64, 13 classes from 0, 255 void, and
            ``depth`` (H, W) float32 metres along the optical axis; officially 480 x 640.

        Raises:
            ValueError: If the file is damaged there, or a label is out of range.
        """
        index = number - 1
        try:
            with require('h5py', self.path).File(self.path, 'r') as file:
                image, label, depth = (file[name][index] for name in ('images', 'labels', 'depths'))
        except (OSError, KeyError) as error:
            raise ValueError(
                f'{self.path}: image {number} cannot be read ({error}); download the file again'
            ) from error
        if int(label.max()) > NUM_LABELS:
            raise ValueError(
                f'{self.path}: image {number}: found label {int(label.max())}, expected 0 (unlabelled) to {NUM_LABELS}'
            )
        return dict(
            image=np.divide(image.transpose(2, 1, 0), 255, dtype=np.float32),
            semseg=self.lookup[label.T],
            depth=np.ascontiguousarray(depth.T, dtype=np.float32),
        )

    def _check_shapes(self) -> tuple[int, tuple[int, int]]:
        """Number of images and their (height, width)."""
        h5py = require('h5py', self.path)
        try:
            with h5py.File(self.path, 'r') as file:
                shapes = {name: file[name].shape for name in ('images', 'depths', 'labels') if name in file}
                whole_numbers = all(file[name].dtype.kind == 'u' for name in ('images', 'labels') if name in file)
        except OSError as error:
            raise ValueError(f'{self.path}: cannot be read ({error}), expected a MATLAB 7.3 (HDF5) file') from error
        images = shapes.get('images', ())
        if len(images) == 4 and images[1] == 3 and 3 * images[2] == 4 * images[3] and whole_numbers:
            count, _, width, height = images
            if shapes.get('depths') == shapes.get('labels') == (count, width, height):
                return count, (height, width)
        raise ValueError(
            f'{self.path}: found {shapes}, expected images (1449, 3, 640, 480), depths and labels (1449, 640, 480), '
            'the axes reversed as MATLAB writes them, images and labels unsigned'
        )

    def _read_splits(self, path: Path) -> dict[str, list[int]]:
        expected = 'trainNdxs and testNdxs, the numbers of 795 and 654 images from 1'
        contents = read_mat(path, expected)
        splits = {}
        for split, name in dict(train='trainNdxs', val='testNdxs').items():
            numbers = np.asarray(contents.get(name, ())).ravel()
            if numbers.size == 0 or numbers.dtype.kind not in 'iuf' or numbers.min() < 1:
                raise ValueError(f'{path}: found no usable {name}, expected {expected}')
            splits[split] = sorted(int(number) for number in numbers)
        if len({*splits['train'], *splits['val']}) < len(splits['train']) + len(splits['val']):
            raise ValueError(f'{path}: an image is named twice, expected {expected}')
        return splits


def kinect_normals(depth: np.ndarray) -> np.ndarray:
    """Normals (H, W, 3) of the data set's depth (H, W), see :func:`normals_from_depth`."""
    height, width = depth.shape
    across, down = width / 640, height / 480
    return normals_from_depth(depth, FX * across, FY * down, CX * across, CY * down)


def _class_lookup(folder: Path) -> np.ndarray:
    """Class of each label 0 to 894, (895,) int64; 255 for label 0 and for what has no class."""
    to_40 = _numbers(folder / 'classMapping40.mat', NUM_LABELS, NUM_CLASSES_40)
    to_13 = _numbers(folder / 'class13Mapping.mat', NUM_CLASSES_40, NUM_CLASSES_13)
    # Both count from 1 and keep 0 for unlabelled.
    to_40, to_13 = np.concatenate([[0], to_40]), np.concatenate([[0], to_13])
    classes = to_13[to_40]
    return np.where(classes == 0, VOID, classes - 1)


def _numbers(path: Path, count: int, highest: int) -> np.ndarray:
    """The only array of ``count`` numbers in a MATLAB file, in whatever variable or field it is."""
    expected = f'{count} class numbers from 0 to {highest}'
    found = _arrays_of_size(list(read_mat(path, expected).values()), count)
    if len(found) != 1 or found[0].min() < 0 or found[0].max() > highest or (found[0] % 1).any():
        raise ValueError(f'{path}: found {len(found)} arrays of {count} numbers, expected one, {expected}')
    return found[0].ravel().astype(np.int64)


def _arrays_of_size(value: Any, count: int) -> list[np.ndarray]:
    """The numeric arrays of ``count`` elements in what SciPy makes of structures and cells."""
    if isinstance(value, np.ndarray) and value.dtype.kind in 'iuf':
        return [value] if value.size == count else []
    if isinstance(value, np.ndarray) and (value.dtype.kind == 'O' or value.dtype.names):
        value = value.ravel().tolist()
    if isinstance(value, tuple | list):
        return [array for part in value for array in _arrays_of_size(part, count)]
    return []
