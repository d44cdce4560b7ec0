"""Predictions as files: one folder per dense task, one JSON file per picture, and pictures to look at."""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmrepmtl.apis.sheet_video import SheetVideo
from mmrepmtl.structures import KindTable, MultiTaskDataSample
from mmrepmtl.utils.files import sweep_temporary, whole_file
from mmrepmtl.utils.folders import check_writable
from mmrepmtl.utils.text import one_line
from mmrepmtl.visualization import task_sheet, write_picture
from mmrepmtl.visualization.panels import palette_of

SHEETS = 'visualization'
#: 16-bit PNG of millimetres.
MAX_MILLIMETRES = 65535
_DENSE = ('segmentation', 'binary', 'depth', 'normals')


class ResultWriter:
    """Writes the predictions of one picture after the other below ``out_dir``.

    ==================================== ===========================================================================
    ``TASK/NAME.png``, segmentation      8-bit palette PNG of class ids
    ``TASK/NAME.png``, binary            8-bit grey PNG, probability x 255
    ``TASK/NAME.png``, depth             16-bit grey PNG of millimetres, 0 where it is not in (0, 65.535 m]
    ``TASK/NAME.npy``, inverse depth     (H, W) float32 in the unit of the data set
    ``TASK/NAME.png``, normals           8-bit RGB PNG, 127 n + 128, axes (right, into the scene, up)
    ``NAME.json``                        source, size, what each file holds; classes, probabilities, regressed values
    ``visualization/NAME.png``           the picture and all predictions; of a video ``visualization/VIDEO.mp4``
    ==================================== ===========================================================================

    The data sets' readers read these files back. A video that OpenCV cannot write becomes the pictures
    ``visualization/VIDEO/NUMBER.png``. Close it, so that a video is complete.

    Args:
        out_dir: The folder, made if need be.
        targets_meta: Declarations of the targets.
        head_targets: {task: name of its target}.
        checkpoint: The checkpoint of the predictions, for the JSON files.

    Raises:
        ValueError: A task with the name of the folder of the pictures.
    """

    def __init__(
        self,
        out_dir: str | Path,
        targets_meta: Mapping[str, Mapping[str, Any]],
        head_targets: Mapping[str, str],
        checkpoint: str | Path,
    ) -> None:
        if SHEETS in head_targets:
            raise ValueError(f'a task {SHEETS!r} has the name of the folder of the pictures; rename it')
        self.out_dir, self.checkpoint = Path(out_dir), str(checkpoint)
        self.targets_meta, self.head_targets = targets_meta, head_targets
        self._video: SheetVideo | None = None
        #: {video that is not there: why}.
        self.broken_videos: dict[Path, str] = {}

    def prepare(self, sources: Sequence[Path], videos: Sequence[str] = ()) -> None:
        """Makes the folders, after checking that no input lies where results go, and removes what killed runs left.

        Args:
            sources: The files that must stay as they are.
            videos: Names of the videos, whose results have folders of their own.

        Raises:
            ValueError: An input is in a folder of the results, or is one file with a result of an earlier run, by
                whatever path or link; or a folder cannot be made or written to. Nothing is written then.
        """
        tasks = [task for task, target in self.head_targets.items() if self.targets_meta[target]['kind'] in _DENSE]
        folders = [self.out_dir, *(self.out_dir / name for name in (SHEETS, *tasks))]
        inside = [folder / video for folder in folders for video in videos]
        self._refuse_inputs(sources, [*folders, *inside])
        for folder in folders:
            check_writable(folder)
        for folder in (*folders, *inside):
            sweep_temporary(folder)

    def _refuse_inputs(self, sources: Sequence[Path], folders: Sequence[Path]) -> None:
        there: dict[tuple[int, int], Path] = {}
        for folder in folders:
            identity = _identity(folder)
            if identity is not None and os.path.isdir(folder):
                there[identity] = folder
        files = {_identity(path): path for path in sources if os.path.isfile(path)} if there else {}
        for path in sources:
            # Both the folder that the path names and the one that a link leads to.
            for parent in (path.absolute().parent, Path(os.path.realpath(path)).parent):
                identity = _identity(parent)
                if identity is not None and identity in there:
                    folder = there[identity]
                    raise ValueError(
                        f'{one_line(str(path))}: lies in {one_line(str(folder))}, which is the folder of the inputs '
                        'and of results at once; give another out_dir, so that no input is overwritten'
                    )
        for folder in there.values():
            with os.scandir(folder) as entries:
                twice = next((entry.path for entry in entries if _identity(entry.path) in files), None)
            if twice is not None:
                source = one_line(str(files[_identity(twice)]))
                raise ValueError(
                    f'{source}: is the same file as {one_line(twice)} among the results; give another out_dir, so that '
                    'no input is overwritten'
                )

    def write(self, result: Any) -> dict[str, Path]:
        """Writes an :class:`InferenceResult`; returns {task, 'json' or 'visualization': its file}.

        The JSON file comes last: where it is, all others are.

        Raises:
            OSError: A file could not be written; none of this picture's is left then.
        """
        files: dict[str, Path] = {}
        try:
            return self._write(result, files)
        except OSError:
            for path in files.values():
                if path.suffix != '.mp4':
                    path.unlink(missing_ok=True)
            raise

    def _write(self, result: Any, files: dict[str, Path]) -> dict[str, Path]:
        told: dict[str, dict] = {}
        for task, prediction in result.predictions.items():
            meta = self.targets_meta[self.head_targets[task]]
            file, told[task] = WRITERS[meta['kind']](self.out_dir / task / result.name, prediction, meta)
            told[task] = dict(kind=meta['kind'], **told[task])
            if file is not None:
                files[task] = file
                told[task]['file'] = str(file.relative_to(self.out_dir))
        files[SHEETS] = self._write_sheet(result)
        files['json'] = self.out_dir / f'{result.name}.json'
        summary = dict(
            source=result.source,
            size=list(result.size),
            network_size=list(result.network_size),
            checkpoint=self.checkpoint,
            tasks=told,
        )
        if result.notes:
            summary['notes'] = list(result.notes)
        with whole_file(files['json']) as opened:
            opened.write(json.dumps(summary, indent=1, allow_nan=False).encode())
        return files

    def _write_sheet(self, result: Any) -> Path:
        sample = MultiTaskDataSample()
        for task, prediction in result.predictions.items():
            sample.set_prediction(task, torch.from_numpy(prediction))
        sheet = task_sheet(result.image, sample, self.targets_meta, self.head_targets, title=result.source)
        if result.video is not None:
            if self._video is None or self._video.name != result.video:
                self.close()
                self._video = SheetVideo(self.out_dir / SHEETS, result.video, result.fps)
            if self._video.write(sheet):
                return self._video.path
        path = self.out_dir / SHEETS / f'{result.name}.png'
        write_picture(path, sheet)
        return path

    def close(self) -> None:
        """Ends the video that is being written."""
        if self._video is not None:
            video, self._video = self._video, None
            try:
                video.close()
            except OSError as error:
                self.broken_videos[video.path] = f'this video could not be written: {error.strerror or error}'


def _identity(path: str | os.PathLike) -> tuple[int, int] | None:
    """Identifies a file or folder whatever its name (device and inode); None if it is not there."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _segmentation(base: Path, labels: np.ndarray, meta: Mapping[str, Any]) -> tuple[Path, dict]:
    picture = Image.fromarray(labels.astype(np.uint8))
    # 256 colours, black beyond the classes: with fewer, Pillow would write 4 bits or less, which not all readers know.
    colours = palette_of(meta)
    picture.putpalette([channel for colour in colours for channel in colour] + [0] * 3 * (256 - len(colours)))
    path = _with_ending(base, '.png')
    write_picture(path, picture)
    found, counts = np.unique(labels, return_counts=True)
    shares = {str(meta['classes'][index]): count / labels.size for index, count in zip(found, counts, strict=True)}
    return path, dict(holds='class ids', classes=[str(name) for name in meta['classes']], share_of_pixels=shares)


def _binary(base: Path, probability: np.ndarray, meta: Mapping[str, Any]) -> tuple[Path, dict]:
    path = _with_ending(base, '.png')
    write_picture(path, np.rint(255 * np.nan_to_num(probability)).astype(np.uint8))
    return path, dict(holds='probability x 255')


def _depth(base: Path, depth: np.ndarray, meta: Mapping[str, Any]) -> tuple[Path, dict]:
    depth = depth[0]
    median = _number(np.median(depth[np.isfinite(depth)])) if np.isfinite(depth).any() else None
    if meta.get('inverse'):
        path = _with_ending(base, '.npy')
        with whole_file(path) as file:
            np.save(file, depth.astype(np.float32))
        return path, dict(holds='inverse depth in the unit of the data set', median=median)
    millimetres = np.rint(1000 * np.where(np.isfinite(depth), depth, 0).astype(np.float64))
    outside = (millimetres <= 0) | (millimetres > MAX_MILLIMETRES)
    path = _with_ending(base, '.png')
    write_picture(path, np.where(outside, 0, millimetres).astype(np.uint16))
    return path, dict(holds='millimetres, 0 invalid', median_metres=median, pixels_without_depth=int(outside.sum()))


def _normals(base: Path, normals: np.ndarray, meta: Mapping[str, Any]) -> tuple[Path, dict]:
    path = _with_ending(base, '.png')
    write_picture(path, np.rint(127 * np.nan_to_num(normals) + 128).astype(np.uint8).transpose(1, 2, 0))
    return path, dict(holds='127 n + 128, axes (right, into the scene, up)')


def _classification(base: Path, probability: np.ndarray, meta: Mapping[str, Any]) -> tuple[None, dict]:
    names = [str(name) for name in meta['classes']]
    best = int(probability.argmax())
    named = {name: _number(value) for name, value in zip(names, probability, strict=True)}
    return None, {'class': names[best], 'probability': _number(probability[best]), 'probabilities': named}


def _regression(base: Path, values: np.ndarray, meta: Mapping[str, Any]) -> tuple[None, dict]:
    return None, dict(values={str(n): _number(value) for n, value in zip(meta['names'], values, strict=True)})


def _with_ending(base: Path, ending: str) -> Path:
    return base.with_name(base.name + ending)  # with_suffix would cut a name at its last dot


def _number(value: Any) -> float | None:
    """A number that JSON can hold."""
    return float(value) if math.isfinite(value) else None


#: Functions of (path without its ending, prediction, declaration). Each returns its file or None, and its JSON entry.
WRITERS: KindTable[Callable[..., tuple[Path | None, dict]]] = KindTable(
    'mmrepmtl.apis.result_files.WRITERS',
    dict(
        segmentation=_segmentation,
        binary=_binary,
        depth=_depth,
        normals=_normals,
        classification=_classification,
        regression=_regression,
    ),
)
