import glob
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrepmtl.datasets.declared import (
    ClassNames,
    ReadClass,
    check_labels,
    declare,
    file_reader,
    listed_classes,
    names_in_data,
    read_image,
    read_text,
    refuse_own_classes,
)
from mmrepmtl.datasets.folder_archive import FileSet, FolderArchiveDataset
from mmrepmtl.registry import DATASETS
from mmrepmtl.structures.kinds import IMAGE_ENDINGS, KINDS


@dataclass(frozen=True)
class FileTree(FileSet):
    """The files of one modality at any depth below its folder, by their path there without the ending."""

    def paths(self) -> dict[str, Path]:
        """{'sub/folder/name': file}.

        Raises:
            ValueError: If two files have one name.
        """
        found: dict[str, Path] = {}
        for folder, children, files in os.walk(self.folder, followlinks=True):
            children[:] = [child for child in children if not child.startswith('.')]
            for file in files:
                ending = next((ending for ending in self.endings if file.lower().endswith(ending.lower())), None)
                # Files of the system begin with a dot ('._0001.jpg').
                if ending is None or file.startswith('.'):
                    continue
                path = Path(folder, file)
                name = str(path.relative_to(self.folder).as_posix())[: -len(ending)]
                if name in found:
                    raise ValueError(f'{path} and {found[name].name} are both the sample {name!r}; remove one of them')
                found[name] = path
        return found


@DATASETS.register_module()
class MultiTaskFolderDataset(FolderArchiveDataset):
    """Own data with one folder per modality, declared in the config.

    An example::

        dataset=dict(
            type='MultiTaskFolderDataset',
            data_root='data/rooms',
            split='train',
            images='{split}/images',
            labels=dict(
                semseg=dict(kind='segmentation', folder='{split}/masks', classes=['wall', 'floor', 'bed']),
                depth=dict(kind='depth', folder='{split}/depth', scale=1000)),
            pipeline=[dict(type='PackMultiTaskInputs')])

    A file belongs to the image that has the same path below its folder, without the ending: ``images/a/7.jpg`` and
    ``masks/a/7.png``. The keys of a declaration, by kind (files in brackets):

    * ``segmentation`` (grey or palette PNG of class ids, or .npy): ``classes``; ``palette``; ``ids``, the number of
      each class in the files (0 to K - 1 by default); ``void``, the numbers of no class (255 by default). Any other
      number is an error.
    * ``binary`` (the same): ``ids=[no, yes]``, ``void``, ``thin=True`` for lines of one pixel.
    * ``depth`` (16-bit PNG, or .npy): ``scale``, the stored units per metre (1000 for millimetres; must be given for
      whole numbers); ``inverse=True`` if values grow towards the camera. 0 is invalid.
    * ``normals`` (8-bit picture, n = (v - 128) / 127, or .npy): axes (right, into the scene, up), 0 0 0 invalid.
    * ``classification`` (.txt with the name or the id of a class; or without ``folder``: the name of the folder that
      the image is in): ``classes``, a list or a text file with one per line. Without it they are the names found in
      all splits, sorted, or 0 to K - 1 if all are whole numbers.
    * ``regression`` (.txt with D numbers, 'nan' for a missing one, or .npy): ``names`` of the numbers.

    Everywhere: ``folder``, and ``suffix``, what follows the name before the ending ('_mask' for ``7_mask.png``).

    Args:
        labels: {target: its declaration}.
        data_root: The folder above the others.
        images: Folder of the images. It and the other folders may hold '{split}'.
        image_suffix: The part after the name in the images' file names.
        split: Replaces '{split}'. Defaults to 'train'.
        split_file: Text file with the names of this split's images, one per line, as in ``images`` (an ending may be
            there); it may hold '{split}'. None takes all images.
        allow_unlabelled: Whether a missing file means "unlabelled" instead of an error.
        test_mode: None means all splits but 'train'.
        **kwargs: Those of ``MultiTaskDataset``: ``targets`` (the names to load), ``pipeline``, ``indices``, ``seed``,
            ``check``, ``cache_dir``.

    Raises:
        ValueError: On a wrong declaration, two files of one name, or a file that holds something else than it should.
        FileNotFoundError: If folders or files are missing, naming what was expected.
    """

    LAYOUTS = ('folders',)

    def __init__(
        self,
        labels: Mapping[str, Mapping],
        data_root: str,
        images: str = 'images',
        image_suffix: str = '',
        split: str = 'train',
        split_file: str | None = None,
        allow_unlabelled: bool = False,
        test_mode: bool | None = None,
        metainfo: Mapping | None = None,
        **kwargs: Any,
    ) -> None:
        check_labels(
            'MultiTaskFolderDataset', labels, {kind: ('folder', 'suffix') for kind in KINDS if KINDS[kind].endings}
        )
        self.data_root = str(Path(data_root).expanduser())
        self.images, self.image_suffix = images, image_suffix
        self.split, self.split_file = split, split_file
        test_mode = split != 'train' if test_mode is None else test_mode
        self.labels = {name: self._complete(name, label, test_mode) for name, label in labels.items()}
        super().__init__(
            data_root=self.data_root,
            allow_unlabelled=allow_unlabelled,
            test_mode=test_mode,
            metainfo=dict(targets={name: declare(label) for name, label in self.labels.items()}) | dict(metainfo or {}),
            **kwargs,
        )

    def layouts(self) -> Mapping[str, Mapping[str, FileSet]]:
        """See :meth:`FolderArchiveDataset.layouts`."""
        files = {name: self._files(name, label) for name, label in self.labels.items()}
        return dict(folders=dict(image=self._image_files(self.images), **files))

    def load_data_list(self) -> list[dict]:
        """One dict of paths per sample: ``image`` and the targets' names."""
        samples = super().load_data_list()
        for name in self.targets:
            if not any(name in sample['paths'] for sample in samples):
                self._expect_some(name)
        return samples

    def select_names(self, names: list[str]) -> list[str]:
        """The images of the split file, in the order of their names."""
        if self.split_file is None:
            return names
        path = Path(self.data_root, Path(self._of_split(self.split_file)).expanduser())
        if not path.is_file():
            raise FileNotFoundError(f'MultiTaskFolderDataset: there is no split_file {path}')
        listed = {_without_ending(line.strip()) for line in path.read_text(encoding='utf-8-sig').splitlines()} - {''}
        missing = sorted(listed - set(names))
        if missing or not listed:
            first = f', the first is {missing[0]}' if missing else ''
            raise FileNotFoundError(
                f'MultiTaskFolderDataset: {len(missing)} of the {len(listed)} images of {path} are missing in '
                f'{self._folder(self.images)}{first}'
            )
        return [name for name in names if name in listed]

    def _complete(self, name: str, label: Mapping, test_mode: bool) -> dict:
        """The declaration with its folder and its classes."""
        label = dict(label)
        kind = KINDS[label['kind']]
        if not kind.of_images and not label.get('folder'):
            raise ValueError(f'MultiTaskFolderDataset: label {name!r} must declare its folder')
        if kind.names == 'names' and not label.get('names'):
            raise ValueError(f'MultiTaskFolderDataset: label {name!r} must declare the names of its numbers')
        if kind.of_images and label.get('classes') is None:
            label['classes'] = self._classes_in_data(name, label, test_mode)
        elif 'classes' in label:
            label['classes'] = listed_classes('MultiTaskFolderDataset', name, label['classes'], self.data_root)
        return label

    def _classes_in_data(self, name: str, label: Mapping, test_mode: bool) -> tuple[str, ...]:
        folder = label.get('folder') or self.images
        if test_mode and '{split}' not in folder and self.split_file is None:
            refuse_own_classes('MultiTaskFolderDataset', name, "Or write the folders with '{split}'")
        pattern = os.path.join(glob.escape(self.data_root), glob.escape(folder).replace('{split}', '*'))
        texts = []
        for found in glob.glob(pattern):
            if label.get('folder'):
                texts += [read_text(str(path)) for path in self._files(name, label, Path(found)).paths().values()]
            else:
                images = self._image_files(found).paths().values()
                texts += [ReadFolderName.name_of(path, Path(found)) for path in images]
        return names_in_data(texts, f'MultiTaskFolderDataset: label {name!r}, {pattern}')

    def _files(self, name: str, label: Mapping, folder: Path | None = None) -> FileTree:
        kind = KINDS[label['kind']]
        if kind.of_images and not label.get('folder'):
            tree = self._image_files(self.images)
            return FileTree(tree.folder, tree.endings, ReadFolderName(ClassNames(label['classes'])))
        endings = tuple(f'{label.get("suffix", "")}{ending}' for ending in kind.endings)
        reader = file_reader('MultiTaskFolderDataset', name, label)
        return FileTree(folder or self._folder(label['folder']), endings, reader)

    def _image_files(self, folder: str) -> FileTree:
        endings = tuple(f'{self.image_suffix}{ending}' for ending in IMAGE_ENDINGS)
        return FileTree(self._folder(folder), endings, read_image)

    def _folder(self, name: str) -> Path:
        return Path(self.data_root, Path(self._of_split(name)).expanduser())

    def _of_split(self, name: str) -> str:
        return name.replace('{split}', self.split)

    def _expect_some(self, target: str) -> None:
        """Raises if the files of a target belong to no image at all, of this split or another."""
        files = self.layouts()['folders']
        labels, images = files[target].paths(), files['image'].paths()
        if not labels:
            raise FileNotFoundError(
                f'MultiTaskFolderDataset: no file of {target!r} in {files[target].folder}, expected '
                f'{" or ".join(files[target].expected())}'
            )
        if not set(labels) & set(images):
            raise ValueError(
                f'MultiTaskFolderDataset: no file of {target!r} in {files[target].folder} has the name of an image: '
                f'{min(labels)!r} there, {min(images)!r} among the images (endings and suffix left out)'
            )


class ReadFolderName(ReadClass):
    """From an image's path to the class that its folder is named after."""

    @staticmethod
    def name_of(path: Path, images: Path) -> str:
        """The name of the folder, which must be below that of the images."""
        if path.parent == images:
            raise ValueError(f'{path}: is in no folder below {images} that would name its class')
        return path.parent.name

    def __call__(self, path: str) -> int:
        return self.classes.parse(Path(path).parent.name, f'{path}: folder')


def _without_ending(name: str) -> str:
    ending = next((ending for ending in IMAGE_ENDINGS if name.lower().endswith(ending)), '')
    return name[: len(name) - len(ending)]
