from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmrepmtl.datasets import readers
from mmrepmtl.datasets.folder_archive import FileSet, FolderArchiveDataset
from mmrepmtl.datasets.nyuv2_mat import FILE, NYUv2Mat, kinect_normals
from mmrepmtl.registry import DATASETS

# The 13 classes of Couprie et al. (2013), "Indoor semantic segmentation using depth information", alphabetical.
CLASSES = (
    'bed',
    'books',
    'ceiling',
    'chair',
    'floor',
    'furniture',
    'objects',
    'picture',
    'sofa',
    'table',
    'tv',
    'wall',
    'window',
)
PALETTE = [
    [0, 92, 230],
    [230, 140, 40],
    [190, 230, 250],
    [220, 60, 60],
    [150, 110, 80],
    [120, 70, 180],
    [245, 215, 60],
    [230, 110, 190],
    [40, 170, 120],
    [170, 40, 90],
    [30, 40, 90],
    [200, 200, 190],
    [90, 200, 230],
]

FOLDERS = dict(image='image', semseg='label', depth='depth', normal='normal')
SPLIT_FOLDERS = {
    'train': ('train',),
    'val': ('val', 'test'),
    'test': ('test', 'val'),
    'train-part': ('train',),
    'val-part': ('train',),
}
# The images follow one another as the camera went through the rooms: blocks keep most rooms in one part.
PART_BLOCK, PART_HELD_OUT = 50, 10

# Endings and reader of each modality's files, by layout.
FILES = dict(
    npy=dict(
        image=(('.npy',), readers.read_npy_image),
        semseg=(('.npy',), readers.read_npy_label),
        depth=(('.npy',), readers.read_npy_depth),
        normal=(('.npy',), readers.read_npy_normal),
    ),
    image=dict(
        image=(('.jpg', '.png'), readers.read_picture_image),
        semseg=(('.png',), readers.read_picture_label),
        depth=(('.png',), readers.read_picture_depth),
        normal=(('.jpg', '.png'), readers.read_picture_normal),
    ),
)


@DATASETS.register_module()
class NYUv2Dataset(FolderArchiveDataset):
    """NYUv2's labelled images (795 train, 654 test): 13 classes, depth, surface normals (Silberman et al., ECCV 2012).

    Three layouts below ``data_root``, samples are ordered by their number:

    * ``npy``, the archive of MTAN and LibMTL: ``{train,val}/{image,label,depth,normal}/<i>.npy``; image (H, W, 3) float
      in [0, 1]; label (H, W), possibly float, -1 void; depth (H, W, 1) metres, 0 invalid; normal (H, W, 3), 0 0 0
      invalid.
    * ``image``: ``{train,test}/{image,label,depth,normal}/<i>.{jpg,png}``; label PNG, 255 void; depth PNG, 16 bit,
      millimetres; normal 8 bit, n = (v - 128) / 127.
    * ``mat``, the official download: ``nyu_depth_v2_labeled.mat``, ``splits.mat``, ``classMapping40.mat`` and
      ``class13Mapping.mat``, at 480 x 640 (resize them in the pipeline). Normals are derived from the depth, which
      takes about a second per image: convert the file with ``tools/dataset_converters/nyuv2.py``, which gives the same,
      or set ``cache_dir``.

    Normals have axes (right, into the scene, up) and are renormalised on loading.

    Args:
        data_root (str, optional): The folder of the data; None takes ``nyuv2`` in the folder that the environment
            variable ``MMREPMTL_DATA`` names.
        split (str): 'train'; 'val' and 'test' are the same 654 images. Settings that must not be chosen on these are
            chosen on 'val-part', after a training on 'train-part': of each 50 training images in a row the last 10
            (155 of 795), and the others (640). Defaults to 'train'.
        layout (str): 'npy', 'image', 'mat', or 'auto' which looks at the files. Defaults to 'auto'.
        allow_unlabelled (bool): Whether a missing target file means "unlabelled" instead of an error. False by default.
        test_mode (bool, optional): None means all splits but 'train' and 'train-part'.
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
            normal=dict(kind='normals'),
        ),
    )
    LAYOUTS = (*FILES, 'mat')
    OFFICIAL_COUNTS = {'train': 795, 'val': 654, 'test': 654, 'train-part': 640, 'val-part': 155}

    def __init__(
        self,
        data_root: str | None = None,
        split: str = 'train',
        layout: str = 'auto',
        allow_unlabelled: bool = False,
        test_mode: bool | None = None,
        **kwargs: Any,
    ) -> None:
        if split not in SPLIT_FOLDERS:
            *others, last = map(repr, SPLIT_FOLDERS)
            raise ValueError(f'NYUv2Dataset: split is {split!r}, expected {", ".join(others)} or {last}')
        self.split = split
        self._mat: NYUv2Mat | None = None
        super().__init__(
            data_root=readers.resolve_root('NYUv2Dataset', data_root, 'nyuv2'),
            layout=layout,
            allow_unlabelled=allow_unlabelled,
            test_mode=not split.startswith('train') if test_mode is None else test_mode,
            **kwargs,
        )

    def layouts(self) -> Mapping[str, Mapping[str, FileSet]]:
        """See :meth:`FolderArchiveDataset.layouts`."""
        folder = self._split_folder()
        return {
            layout: {name: FileSet(folder / FOLDERS[name], *files) for name, files in by_name.items()}
            for layout, by_name in FILES.items()
        }

    def load_data_list(self) -> list[dict]:
        """See :meth:`FolderArchiveDataset.load_data_list`; of the official download the numbers of the images."""
        folders = any(folder.is_dir() for folder in self._candidates())
        if self.layout != 'mat' and (self.layout != 'auto' or folders or not Path(self.data_root, FILE).is_file()):
            return super().load_data_list()
        mat = self._mat = NYUv2Mat(self.data_root)
        numbers = mat.splits['train' if SPLIT_FOLDERS[self.split] == ('train',) else 'val']
        if numbers[-1] > mat.count:
            raise ValueError(f'{mat.path}: holds {mat.count} images, but splits.mat names image {numbers[-1]}')
        return [
            dict(path=str(mat.path), image=f'{mat.path}: image {number}', number=number)
            for number in self._of_this_part(numbers)
        ]

    def select_names(self, names: list[str]) -> list[str]:
        """See :meth:`FolderArchiveDataset.select_names`."""
        return self._of_this_part(names)

    def _of_this_part(self, samples: Sequence[Any]) -> list[Any]:
        if not self.split.endswith('-part'):
            return list(samples)
        first_held_out = PART_BLOCK - PART_HELD_OUT
        held_out = self.split == 'val-part'
        part = [sample for i, sample in enumerate(samples) if (i % PART_BLOCK >= first_held_out) == held_out]
        if not part:
            raise ValueError(
                f'NYUv2Dataset: split {self.split!r} is empty: of each {PART_BLOCK} training images in a row the last '
                f'{PART_HELD_OUT} are held out, but there are only {len(samples)}'
            )
        return part

    def load_sample(self, data_info: dict) -> dict:
        """See :meth:`MultiTaskDataset.load_sample`."""
        if self._mat is None:
            return super().load_sample(data_info)
        gt = self._mat.read(data_info['number'])
        img = gt.pop('image')
        if 'normal' in self.targets:
            gt['normal'] = kinect_normals(gt['depth'])
        return dict(img=img, img_path=data_info['image'], gt=gt)

    def _candidates(self) -> list[Path]:
        return [Path(self.data_root) / name for name in SPLIT_FOLDERS[self.split]]

    def _split_folder(self) -> Path:
        candidates = self._candidates()
        for folder in candidates:
            if folder.is_dir():
                return folder
        raise FileNotFoundError(
            f'NYUv2Dataset: no folder {" or ".join(map(str, candidates))} for split '
            f'{self.split!r}; data_root must hold {{train,val}} or {{train,test}}, each with the '
            f'folders {", ".join(FOLDERS.values())}, or {FILE}'
        )
