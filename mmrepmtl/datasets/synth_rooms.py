from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmrepmtl.datasets.base import MultiTaskDataset
from mmrepmtl.datasets.synth import CLASSES, PALETTE, Room, render_room, sample_room
from mmrepmtl.registry import DATASETS

SPLITS = ('train', 'val', 'test')
TARGETS = ('semseg', 'depth', 'normal')

# The streams of a sample's random numbers. They are independent: the scene depends on neither size nor labels.
SCENE, SENSOR, LABELS = range(3)


@DATASETS.register_module()
class SynthRoomsDataset(MultiTaskDataset):
    """Synthetic rooms: an embedded data set for semantic segmentation, depth and surface normals.

    Each sample is a random furnished room, ray cast when it is asked for: nothing is stored or downloaded. It is a
    function of (seed, split, index) alone; the splits share no rooms, and the same room is seen at every `size`.
    All pixels are labelled. Depth is the distance along the optical axis in metres (about 0.5 to 8), and normals are
    unit vectors in the camera's axes (right, into the scene, up), turned to the camera, both as in NYUv2.

    Args:
        size: Height and width of the images.
        num_samples: Number of rooms.
        split: `train`, `val` or `test`.
        seed: Chooses the rooms, at least 0. Another seed is another data set, with its own three splits.
        targets: Names of the targets to load, among `semseg`, `depth` and `normal`.
        label_fraction: {target: fraction of the samples that carry it}, for learning from partial labels; targets that
            are not named are always there. Which samples lack which target is a function of (seed, split, index).
        **kwargs: Those of `MultiTaskDataset`.

    Raises:
        ValueError: On an unknown split or target, an empty size or set, a seed out of range, a fraction out
            of [0, 1].
    """

    METAINFO = dict(
        targets=dict(
            semseg=dict(kind='segmentation', classes=CLASSES, palette=PALETTE),
            depth=dict(kind='depth'),
            normal=dict(kind='normals'),
        )
    )

    def __init__(
        self,
        size: Sequence[int] = (96, 128),
        num_samples: int = 1000,
        split: str = 'train',
        seed: int = 0,
        targets: Sequence[str] | None = TARGETS,
        label_fraction: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f'size is {tuple(size)}, expected a positive (height, width)')
        if num_samples < 1:
            raise ValueError(f'num_samples is {num_samples}, expected at least 1')
        if split not in SPLITS:
            raise ValueError(f'split is {split!r}, expected one of {", ".join(SPLITS)}')
        # Larger numbers would spread over several words of the seed sequence, where keys could meet.
        if not 0 <= seed < 2**32:
            raise ValueError(f'seed is {seed}, expected 0 to 2**32 - 1')
        for name, fraction in (label_fraction or {}).items():
            if name not in TARGETS:
                raise ValueError(f'label_fraction names {name!r}, expected names among {", ".join(TARGETS)}')
            if not 0 <= fraction <= 1:
                raise ValueError(f'label_fraction[{name!r}] is {fraction}, expected a number in [0, 1]')
        self.size = (int(size[0]), int(size[1]))
        self.num_samples = num_samples
        self.split = split
        self.label_fraction = dict(label_fraction or {})
        super().__init__(targets=targets, seed=seed, **kwargs)

    def load_data_list(self) -> list[dict]:
        """One entry per room: its number."""
        return [dict(room=index) for index in range(self.num_samples)]

    def load_sample(self, data_info: dict) -> dict:
        """Renders a room; see `MultiTaskDataset.load_sample` for what is returned."""
        index = data_info['room']
        picture = render_room(self.room(index), self.size, self._rng(index, SENSOR))
        truth = dict(semseg=picture.label, depth=picture.depth, normal=picture.normal)
        chances = dict(zip(TARGETS, self._rng(index, LABELS).random(len(TARGETS)), strict=True))
        labelled = {name: value for name, value in truth.items() if chances[name] < self.label_fraction.get(name, 1)}
        return dict(img=picture.image, gt=labelled, img_path=f'synth_rooms/{self.split}/{self.seed}/{index:06d}')

    def room(self, index: int) -> Room:
        """The scene of a sample, with its camera: the intrinsics that unproject its depth are there."""
        return sample_room(self._rng(index, SCENE))

    def _rng(self, index: int, purpose: int) -> np.random.Generator:
        key = (self.seed, SPLITS.index(self.split), index, purpose)
        # PCG64 by name: NumPy may change its default generator.
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
