import os
import random
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.structures import BaseDataElement
from torch.utils.data import get_worker_info

from mmrepmtl.datasets.cache import SampleCache
from mmrepmtl.datasets.checks import check_image, check_target, check_targets
from mmrepmtl.datasets.samplers import EpochIndex
from mmrepmtl.registry import TRANSFORMS


@contextmanager
def isolated_rng(*key: int) -> Iterator[None]:
    """Seeds Python's, NumPy's and torch's (CPU) global generators with ``key``; puts their states back on leaving."""
    before = _rng_state()
    # 64-bit two's complement, since SeedSequence takes no negative numbers.
    words = np.random.SeedSequence([int(part) & (2**64 - 1) for part in key]).generate_state(4, np.uint64)
    random.seed(int(words[0]))
    np.random.seed(words[1:3].view(np.uint32))
    # torch.manual_seed would also reseed the generators of the GPUs.
    torch.default_generator.manual_seed(int(words[3]))
    try:
        yield
    finally:
        python_state, numpy_state, torch_state = before
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.default_generator.set_state(torch_state)


def _rng_state() -> tuple:
    return random.getstate(), np.random.get_state(), torch.default_generator.get_state()


def _same_rng_state(one: tuple, other: tuple) -> bool:
    return (
        one[0] == other[0]
        and one[1][2:] == other[1][2:]
        and np.array_equal(one[1][1], other[1][1])
        and torch.equal(one[2], other[2])
    )


class MultiTaskDataset(BaseDataset):
    """Base of the data sets: images with any number of targets, each of which may be missing for a sample.

    A subclass declares its targets and implements two methods::

        @DATASETS.register_module()
        class MyRooms(MultiTaskDataset):
            METAINFO = dict(targets=dict(
                semseg=dict(kind='segmentation', classes=('wall', 'floor'), palette=[[0, 0, 0], [255, 0, 0]]),
                depth=dict(kind='depth')))

            def load_data_list(self):      # one dict per sample, cheap: paths or numbers
                return [dict(path=path) for path in sorted(Path(self.data_root).glob('*.jpg'))]

            def load_sample(self, data_info):
                return dict(img=..., gt=dict(semseg=..., depth=...), img_path=data_info['path'])

    Formats by kind (H, W is the size of the image):

    ============== ================ =======================================
    kind           array            invalid
    ============== ================ =======================================
    segmentation   (H, W) int64     255
    binary         (H, W) int64     255; 0 no, 1 yes; ``thin=True`` declares lines of one pixel
    depth          (H, W) float32   0; metres, or 1 / metres if the target declares ``inverse=True``
    normals        (H, W, 3) f32    0 0 0; unit length, axes (right, into the scene, up)
    classification int
    regression     (D,) float32     NaN
    ============== ================ =======================================

    **Randomness.** Loading and the pipeline run with the global generators of Python, NumPy and torch seeded by (seed,
    epoch, index) and put back afterwards. So augmentation, ours or any mmcv transform, depends neither on the
    number of workers nor on where a run was interrupted, and loading in the main process leaves the model's random
    numbers alone. Epoch and seed arrive in the index (``EpochSampler``, ``EpochInfiniteSampler``). A plain integer
    carries neither: with ``test_mode`` epoch 0 and this data set's ``seed`` are taken; in training the global
    generators are used as mmengine does (the same augmentation in each epoch would be worse), with a warning if the
    pipeline draws random numbers.

    Args:
        targets (Sequence[str], optional): Names of the targets to load; None is all that are declared.
        seed (int): Used where the index carries no seed. Defaults to 0.
        check (bool): Whether to check each loaded sample (about 1 ms at 288 x 384). Defaults to True.
        cache_dir (str, optional): Folder for decoded samples, which later epochs and runs read instead of decoding
            anew; see :class:`SampleCache`. ``load_sample`` may then depend on ``data_info``, the files that it (or the
            sample) names, and the arguments of the data set only. None decodes every time.
        pipeline (Sequence): Transforms or their configs. Ours are found by plain name under any default scope.
        metainfo (Mapping, optional): Overrides entries of ``METAINFO``.
        **kwargs: Those of mmengine's ``BaseDataset`` (``data_root``, ``indices``, ``test_mode``, ...).

    Raises:
        ValueError: On an unknown target name or a wrong declaration; when a sample is taken: if loaded arrays do not
            fit the declaration, or the pipeline returns None (mmengine would silently take another sample).
    """

    METAINFO: dict = dict(targets={})

    def __new__(cls, *args: Any, **kwargs: Any) -> 'MultiTaskDataset':
        self = super().__new__(cls)
        # The arguments of the most derived class are part of the cache's key.
        self._arguments = (args, kwargs)
        return self

    def __init__(
        self,
        targets: Sequence[str] | None = None,
        seed: int = 0,
        check: bool = True,
        pipeline: Sequence = (),
        metainfo: Mapping | None = None,
        cache_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        metainfo = dict(metainfo or {})
        declared = dict(metainfo.get('targets', self.METAINFO.get('targets', {})))
        check_targets(declared)
        check_target_names(declared)
        metainfo['targets'] = self._select(declared, targets)
        self.seed = seed
        self.check = check
        self._declared = frozenset(declared)
        self._warned = False
        self.cache: SampleCache | None = None
        super().__init__(metainfo=metainfo, pipeline=[build_transform(t) for t in pipeline], **kwargs)
        if cache_dir is not None:
            self.cache = SampleCache(cache_dir, type(self), self._arguments, self.targets)

    @property
    def targets(self) -> dict[str, dict]:
        """Declarations of the targets that are loaded, by name: ``metainfo['targets']``."""
        return self._metainfo['targets']

    @abstractmethod
    def load_data_list(self) -> list[dict]:
        """One small dict per sample."""

    @abstractmethod
    def load_sample(self, data_info: dict) -> dict:
        """Loads one sample.

        Args:
            data_info (dict): The entry of ``load_data_list`` plus ``sample_idx``.

        Returns:
            dict: ``img`` (H, W, 3) float32 RGB in [0, 1]; ``gt`` {target name: value}, a name that is absent means
            unlabelled (targets that are not in ``self.targets`` are dropped, so a subclass may skip loading them);
            ``img_path`` str; optionally ``gt_paths`` {target name: path}, for error messages.
        """

    def prepare_data(self, idx: int) -> Any:
        """Loads the sample and runs the pipeline on it.

        The dict that enters the pipeline holds ``img``, ``gt``, ``targets`` (the declarations), ``sample_idx``,
        ``img_path``, ``ori_shape`` and ``img_shape`` (H, W).
        """
        if isinstance(idx, EpochIndex):
            with isolated_rng(idx.seed, idx.epoch, idx.origin):
                return self._run(int(idx))
        if self.test_mode:
            with isolated_rng(self.seed, 0, idx % len(self)):
                return self._run(idx)
        if self._warned:
            return self._run(idx)
        before = _rng_state()
        data = self._run(idx)
        if not _same_rng_state(before, _rng_state()):
            self._warn_of_plain_index()
        return data

    def _run(self, idx: int) -> Any:
        return self.run_pipeline(self.load(idx))

    def load(self, idx: int) -> dict:
        """Loads and checks a sample: the dict that enters the pipeline, see :meth:`prepare_data`."""
        data_info = self.get_data_info(idx)
        sample = self.fetch(data_info)
        shape = sample['img'].shape[:2]
        return dict(
            img=sample['img'],
            gt=sample['gt'],
            targets=self.targets,
            sample_idx=data_info['sample_idx'],
            img_path=sample['img_path'],
            ori_shape=shape,
            img_shape=shape,
        )

    def run_pipeline(self, results: dict) -> Any:
        """Runs the pipeline on what :meth:`load` returned.

        Raises:
            ValueError: If it returns None.
        """
        path = results['img_path']
        data = self.pipeline(results)
        if data is None:
            raise ValueError(
                f'{path}: the pipeline of {type(self).__name__} returned None for this sample; '
                'a transform must return the results or raise'
            )
        return data

    def fetch(self, data_info: dict) -> dict:
        """:meth:`load_sample` with the wanted targets, checked, from the cache where there is one."""
        if self.cache is None:
            return self._load_checked(data_info)
        return self.cache.fetch(
            data_info, lambda: self._load_unrandomly(data_info), lambda sample: self.source_files(data_info, sample)
        )

    def source_files(self, data_info: dict, sample: dict) -> list[str]:
        """Names of the files that a sample is made from: the cache decodes anew when one of them has changed.

        By default the files among the texts in ``data_info``, which must be some, and the sample's ``img_path`` and
        ``gt_paths``.
        """
        named = [text for text in _texts(data_info) if os.path.isfile(text)]
        more = [sample['img_path'], *sample['gt_paths'].values()] if named else []
        return list(dict.fromkeys([*named, *(path for path in more if os.path.isfile(path))]))

    def _load_unrandomly(self, data_info: dict) -> dict:
        before = _rng_state()
        sample = self._load_checked(data_info)
        if not _same_rng_state(before, _rng_state()):
            raise ValueError(
                f'{type(self).__name__}: load_sample draws random numbers, so its samples cannot be '
                'cached; leave out cache_dir, or draw them in a transform of the pipeline'
            )
        return sample

    def _load_checked(self, data_info: dict) -> dict:
        sample = self.load_sample(data_info)
        img, path = sample['img'], str(sample['img_path'])
        gt = self._wanted_targets(sample['gt'], path)
        gt_paths = {name: str(file) for name, file in sample.get('gt_paths', {}).items()}
        if self.check:
            check_image(img, path)
            for name, value in gt.items():
                check_target(name, value, self.targets[name], img.shape[:2], gt_paths.get(name, path))
        return dict(img=img, gt=gt, img_path=path, gt_paths=gt_paths)

    def _wanted_targets(self, gt: Mapping[str, Any], path: str) -> dict[str, Any]:
        unknown = set(gt) - self._declared
        if unknown:
            raise ValueError(
                f'{path}: {type(self).__name__}.load_sample returned targets {sorted(unknown)}, '
                f'declared are {sorted(self._declared)}'
            )
        return {name: gt[name] for name in self.targets if name in gt}

    def _select(self, declared: dict[str, dict], names: Sequence[str] | None) -> dict[str, dict]:
        if names is None:
            return declared
        if isinstance(names, str):
            names = [names]
        unknown = [name for name in names if name not in declared]
        if unknown:
            raise ValueError(f'{type(self).__name__}: unknown targets {unknown}, available are {list(declared)}')
        return {name: declared[name] for name in names}

    def _warn_of_plain_index(self) -> None:
        self._warned = True
        worker = get_worker_info()
        if worker is None or worker.id == 0:
            warnings.warn(
                f'{type(self).__name__}: the pipeline draws random numbers, but the sampler gives plain indices, so '
                'augmentation depends on the workers and a resumed run differs from an uninterrupted one. Use '
                "sampler=dict(type='EpochSampler') (or 'EpochInfiniteSampler') for training.",
                stacklevel=2,
            )


def check_target_names(names: Iterable[str]) -> None:
    """Refuses names under which a ``MultiTaskDataSample`` could not hold a target.

    Raises:
        ValueError: With the name and the reason.
    """
    for name in names:
        reason = None
        if not isinstance(name, str) or not name:
            reason = 'it must be a text that is not empty'
        elif '.' in name or '/' in name:
            reason = "'.' and '/' separate the parts of names of losses and metrics"
        elif hasattr(BaseDataElement(), name):
            reason = 'it is an attribute of the container of targets'
        if reason is not None:
            raise ValueError(f'the target name {name!r} cannot be used: {reason}; choose another one')


def _texts(value: Any) -> Iterator[str]:
    """All texts in nested dicts and lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def build_transform(transform: Any) -> Any:
    """Builds a config; our transforms go by plain name whatever the default scope, as mmengine's Compose does not."""
    if not isinstance(transform, Mapping):
        return transform
    config = dict(transform)
    config['type'] = TRANSFORMS.module_dict.get(config.get('type'), config.get('type'))
    return TRANSFORMS.build(config)
