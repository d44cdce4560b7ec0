"""Transforms that move pixels: the image and all its dense targets together, each by its kind.

Random numbers come from NumPy's global generator, as in mmcv; ``MultiTaskDataset`` seeds it per sample.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from mmcv.transforms import BaseTransform

from mmrepmtl.datasets.transforms import functional as F
from mmrepmtl.registry import TRANSFORMS
from mmrepmtl.structures.kinds import KINDS, KindTable

Size = tuple[int, int]


class Window(NamedTuple):
    """The part of an image from (``top``, ``left``) in pixels that is enlarged ``scale`` times to ``size`` (H, W)."""

    size: Size
    top: int
    left: int
    scale: float


def _map_targets(results: dict, function: Callable[[np.ndarray, dict], np.ndarray]) -> None:
    """Replaces each dense target by function(value, declaration); others stay."""
    for name, value in results['gt'].items():
        meta = results['targets'][name]
        if KINDS[meta['kind']].dense:
            results['gt'][name] = function(value, meta)


def _resize_nearest(value: np.ndarray, meta: dict, size: Size, interpolation: str) -> np.ndarray:
    return F.sample_nearest(value, size)


def _resize_binary(value: np.ndarray, meta: dict, size: Size, interpolation: str) -> np.ndarray:
    return F.resize_lines(value, size) if meta.get('thin', False) else F.sample_nearest(value, size)


def _resize_normals(value: np.ndarray, meta: dict, size: Size, interpolation: str) -> np.ndarray:
    return F.resize_normals(value, size, interpolation)


#: Functions of (value, declaration, (H, W), interpolation of the image) that return the resized value.
RESIZE: KindTable[Callable[[np.ndarray, dict, Size, str], np.ndarray]] = KindTable(
    'mmrepmtl.datasets.transforms.geometric.RESIZE',
    dict(segmentation=_resize_nearest, binary=_resize_binary, depth=_resize_nearest, normals=_resize_normals),
    dense=True,
)


def _zoom_nearest(value: np.ndarray, meta: dict, window: Window, geometric: bool) -> np.ndarray:
    return F.sample_nearest(value, window.size, window.top, window.left, (window.scale, window.scale))


def _zoom_depth(value: np.ndarray, meta: dict, window: Window, geometric: bool) -> np.ndarray:
    factor = window.scale if meta.get('inverse', False) else 1 / window.scale
    return _zoom_nearest(value, meta, window, geometric) * value.dtype.type(factor)


def _zoom_normals(value: np.ndarray, meta: dict, window: Window, geometric: bool) -> np.ndarray:
    return F.zoom_normals(value, *window, geometric)


#: Functions of (value, declaration, window, whether directions are to agree with depth) that enlarge the window.
ZOOM: KindTable[Callable[[np.ndarray, dict, Window, bool], np.ndarray]] = KindTable(
    'mmrepmtl.datasets.transforms.geometric.ZOOM',
    dict(segmentation=_zoom_nearest, binary=_zoom_nearest, depth=_zoom_depth, normals=_zoom_normals),
    dense=True,
)


def _set_image(results: dict, img: np.ndarray) -> None:
    results['img'] = img
    results['img_shape'] = img.shape[:2]


def _as_size(size: Sequence[int], owner: str) -> tuple[int, int]:
    size = tuple(size)
    if len(size) != 2 or any(int(length) != length or length < 1 for length in size):
        raise ValueError(f'{owner}: size must be (height, width) in pixels, got {size}')
    return int(size[0]), int(size[1])


@TRANSFORMS.register_module()
class ResizeMultiTask(BaseTransform):
    """Resizes the image and all dense targets to ``size``.

    Image and normals are interpolated (normals are then renormalised, invalid ones neither spread nor mix in), labels
    and depth take the nearest pixel. Depth values stay: the camera's pixels change, not the scene. A binary target that
    declares ``thin=True`` keeps its lines whole: a pixel is 1 where any pixel of its area was.

    Args:
        size (Sequence[int]): (height, width) in pixels.
        interpolation (str): 'bilinear', or 'area' which avoids aliasing when shrinking. Defaults to 'bilinear'.

    Raises:
        ValueError: On a wrong size or an unknown interpolation.
    """

    def __init__(self, size: Sequence[int], interpolation: str = 'bilinear') -> None:
        self.size = _as_size(size, 'ResizeMultiTask')
        if interpolation not in F.INTERPOLATIONS:
            raise ValueError(f'ResizeMultiTask: interpolation is {interpolation!r}, expected one of {F.INTERPOLATIONS}')
        self.interpolation = interpolation

    def transform(self, results: dict) -> dict:
        """Transforms ``results`` in place and returns it."""

        # Each modality is looked at by itself, so targets of another size than the image come out right too.
        def resize(value: np.ndarray, meta: dict) -> np.ndarray:
            if value.shape[:2] == self.size:
                return value
            return RESIZE[meta['kind']](value, meta, self.size, self.interpolation)

        if results['img'].shape[:2] != self.size:
            _set_image(results, F.resize_image(results['img'], self.size, self.interpolation))
        _map_targets(results, resize)
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(size={self.size}, interpolation={self.interpolation!r})'


@TRANSFORMS.register_module()
class RandomZoom(BaseTransform):
    """Crops a random window of (H / s, W / s) and enlarges it to (H, W), with s drawn from ``scales``.

    The window's size is exact even where H / s is no whole number; its origin is a whole pixel. Image and normals are
    bilinear, labels and depth nearest. The network sees an image that a camera of the same focal length would have
    taken of an s times shallower scene, so depth is divided by s (a target that declares ``inverse=True`` is
    multiplied).

    Strictly, that scene has other normals: (nx, s ny, nz) renormalised, y into the scene, for the principal point that
    moved with the window. Public code leaves normals as they are.

    Args:
        scales (Sequence[float]): Candidates for s, each 1 or more. Defaults to (1.0, 1.2, 1.5), the recipe of MTAN.
        normal_zoom (str): 'public' leaves the directions as they are, 'geometric' makes them agree with depth.

    Raises:
        ValueError: On a scale below 1 or an unknown ``normal_zoom``.
    """

    def __init__(self, scales: Sequence[float] = (1.0, 1.2, 1.5), normal_zoom: str = 'public') -> None:
        if not scales or min(scales) < 1:
            raise ValueError(f'RandomZoom: scales must be 1 or more, got {tuple(scales)}')
        if normal_zoom not in ('public', 'geometric'):
            raise ValueError(f"RandomZoom: normal_zoom is {normal_zoom!r}, expected 'public' or 'geometric'")
        self.scales = tuple(float(scale) for scale in scales)
        self.normal_zoom = normal_zoom

    def transform(self, results: dict) -> dict:
        """Zooms the image and all dense targets by one scale, drawn at random."""
        height, width = results['img'].shape[:2]
        scale = self.scales[np.random.randint(len(self.scales))]
        # Drawn also at scale 1, so that later transforms get the same numbers whatever the scale.
        top, left = (np.random.randint(int(length - length / scale) + 1) for length in (height, width))
        return results if scale == 1 else self.zoom(results, scale, top, left)

    def zoom(self, results: dict, scale: float, top: int, left: int) -> dict:
        """Enlarges the window at (top, left) ``scale`` times."""
        size = results['img'].shape[:2]
        for name, value in results['gt'].items():
            if KINDS[results['targets'][name]['kind']].dense and value.shape[:2] != size:
                raise ValueError(
                    f'{results.get("img_path")}: RandomZoom needs targets of the size of the image '
                    f'{size}, {name!r} has {value.shape[:2]}'
                )

        window, geometric = Window(size, top, left, scale), self.normal_zoom == 'geometric'
        _set_image(results, F.sample_bilinear(results['img'], size, top, left, (scale, scale)))
        _map_targets(results, lambda value, meta: ZOOM[meta['kind']](value, meta, window, geometric))
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(scales={self.scales}, normal_zoom={self.normal_zoom!r})'


@TRANSFORMS.register_module()
class RandomFlip(BaseTransform):
    """Mirrors left and right with probability ``prob``; the normals' x (right) changes its sign.

    Targets without pixels (classification, regression) stay as they are.

    Args:
        prob (float): Probability in [0, 1]. Defaults to 0.5.

    Raises:
        ValueError: If ``prob`` is no probability.
    """

    def __init__(self, prob: float = 0.5) -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f'RandomFlip: prob must be in [0, 1], got {prob}')
        self.prob = prob

    def transform(self, results: dict) -> dict:
        """Transforms ``results`` in place and returns it."""
        if np.random.rand() >= self.prob:
            return results

        def mirror(value: np.ndarray, meta: dict) -> np.ndarray:
            return F.flip_normals(value) if KINDS[meta['kind']].directions else F.mirror(value)

        _set_image(results, F.mirror(results['img']))
        _map_targets(results, mirror)
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(prob={self.prob})'


@TRANSFORMS.register_module()
class PadMultiTask(BaseTransform):
    """Pads at the bottom and on the right: labels with void, depth and normals with invalid, the image with ``fill``.

    Args:
        size (Sequence[int], optional): (height, width) in pixels to pad to.
        divisor (int, optional): Pad to the next multiple of this instead. Give one of the two.
        fill (float): Image value in [0, 1]. Defaults to 0.

    Raises:
        ValueError: If not exactly one of ``size`` and ``divisor`` is given, or an image is larger than ``size``.
    """

    def __init__(self, size: Sequence[int] | None = None, divisor: int | None = None, fill: float = 0.0) -> None:
        if (size is None) == (divisor is None):
            raise ValueError('PadMultiTask: give either size or divisor')
        if divisor is not None and divisor < 1:
            raise ValueError(f'PadMultiTask: divisor must be 1 or more, got {divisor}')
        if not 0 <= fill <= 1:
            raise ValueError(f'PadMultiTask: fill must be in [0, 1], got {fill}')
        self.size = None if size is None else _as_size(size, 'PadMultiTask')
        self.divisor = divisor
        self.fill = fill

    def transform(self, results: dict) -> dict:
        """Transforms ``results`` in place and returns it."""
        height, width = results['img'].shape[:2]
        if self.size is None:
            size = (-(-height // self.divisor) * self.divisor, -(-width // self.divisor) * self.divisor)
        else:
            size = self.size
        if height > size[0] or width > size[1]:
            raise ValueError(
                f'{results.get("img_path")}: image of {(height, width)} cannot be padded to {size}; resize it first'
            )

        def pad(value: np.ndarray, meta: dict) -> np.ndarray:
            if value.shape[:2] != (height, width):
                raise ValueError(
                    f'{results.get("img_path")}: PadMultiTask needs targets of the size of the image '
                    f'{(height, width)}, found {value.shape[:2]}'
                )
            void = KINDS[meta['kind']].void
            assert void is not None  # each dense kind has one
            return F.pad_bottom_right(value, size, void)

        _set_image(results, F.pad_bottom_right(results['img'], size, self.fill))
        _map_targets(results, pad)
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(size={self.size}, divisor={self.divisor}, fill={self.fill})'
