"""Predictions of all tasks on pictures, folders and videos, at their own size and in physical units."""

import errno
import logging
import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor

from mmrepmtl.apis.image_pipeline import ImagePipeline, Prepared
from mmrepmtl.apis.inputs import MAX_PIXELS, Inputs, Picture, find_inputs
from mmrepmtl.apis.loading import find_run, load_model, target_declarations
from mmrepmtl.apis.result_files import ResultWriter
from mmrepmtl.models import MultiTaskModel
from mmrepmtl.models.heads import DenseHead, full_precision
from mmrepmtl.utils.device import resolve_device
from mmrepmtl.utils.text import one_line
from mmrepmtl.visualization.draw import to_array

#: After one of these errors no other picture's results could be written either.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENODEV, errno.EACCES)


@dataclass
class InferenceResult:
    """The predictions for one picture.

    Attributes:
        name: The name of its files; VIDEO/NUMBER for a frame.
        source: The path, with the number of a frame.
        predictions: {task: array} as in ``MultiTaskDataSample``, (H, W) being the picture's own size: class ids (H, W)
            int64; probabilities (H, W); depth (1, H, W) in metres (in the unit of the data set where the target is
            inverse); normals (3, H, W) of unit length, axes (right, into the scene, up); probabilities of the classes
            (K,); regressed values (D,) in the unit of the data set. Empty if the picture could not be read.
        image: The picture, (H, W, 3) uint8 RGB.
        network_size: (h, w) of the picture in the network's input.
        files: {task, 'json' or 'visualization': file}, where files are written.
        error: Why there are no predictions, or None.
        video, fps: Name and frame rate of the video that it is a frame of.
        notes: Decisions in reading it, such as the range of a 16-bit picture.
    """

    name: str
    source: str
    predictions: dict[str, np.ndarray] = field(default_factory=dict)
    image: np.ndarray | None = None
    network_size: tuple[int, int] | None = None
    files: dict[str, Path] = field(default_factory=dict)
    error: str | None = None
    video: str | None = None
    fps: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W) of the picture."""
        return None if self.image is None else (self.image.shape[0], self.image.shape[1])


class MultiTaskInferencer:
    """Predicts all tasks of a trained model on pictures that belong to no data set.

        inferencer = MultiTaskInferencer('work_dirs/quickstart')
        result, = inferencer('kitchen.jpg', out_dir='predictions')
        result.predictions['depth']  # (1, H, W), metres

    A picture is brought to the size that the network was trained at (see :class:`ImagePipeline`). The network's
    outputs, logits and not labels, are resized to the picture's size bilinearly about pixel centres, which undoes the
    resizing of the picture, and then become classes and unit normals.

    A picture that cannot be read gets one line in the log and a result with ``error``; the others go on. Pictures are
    batched only with others of the same network size, so that a prediction does not depend on its batch.

    Args:
        config_or_workdir: A config file, or the work directory of a run.
        checkpoint: The file; None takes the last one of the work directory.
        device: None: a GPU where there is one, else the CPU.
        trust_checkpoint: Load a checkpoint that holds more than data.
        size: (height, width) in pixels of the network's input, instead of what the config says.
        max_pixels: The most pixels of a picture or a frame; larger ones are refused before they are decoded. ``size``
            may have as many.

    Raises:
        FileNotFoundError: There is no such config, directory or checkpoint.
        ValueError: The checkpoint is refused or does not fit, the model is another one than
            :class:`MultiTaskModel`, the config's test pipeline cannot be used, ``size`` has too many pixels, or this
            machine has no such device.
    """

    def __init__(
        self,
        config_or_workdir: str | Path,
        checkpoint: str | Path | None = None,
        device: str | torch.device | None = None,
        trust_checkpoint: bool = False,
        size: Sequence[int] | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        device, self.max_pixels = resolve_device(device), max_pixels
        if max_pixels < 1:
            raise ValueError(f'MultiTaskInferencer: max_pixels={max_pixels} must be at least 1')
        if size is not None and math.prod(size) > max_pixels:
            raise ValueError(
                f'MultiTaskInferencer: size={tuple(size)} are {math.prod(size)} pixels, at most '
                f'max_pixels={max_pixels} are taken; give a smaller size, or a larger max_pixels'
            )
        cfg, self.checkpoint = find_run(config_or_workdir, checkpoint, trust_checkpoint)
        model, state = load_model(cfg, self.checkpoint, device, trust_checkpoint)
        if not isinstance(model, MultiTaskModel):
            raise ValueError(
                f'MultiTaskInferencer predicts with a MultiTaskModel, the config has {type(model).__name__}; use the '
                'inferencer of its project'
            )
        self.cfg, self.model = cfg, model
        self.head_targets: dict[str, str] = {task: head.target_name for task, head in model.heads.items()}
        declared = target_declarations(cfg, state)
        missing = [target for target in self.head_targets.values() if target not in declared]
        if missing:
            raise ValueError(f'MultiTaskInferencer: the targets {missing} are not declared; there are {list(declared)}')
        self.targets_meta = {target: declared[target] for target in self.head_targets.values()}
        self.pipeline = ImagePipeline(cfg, size)
        if self.pipeline.keeps_size:
            _warn(
                'MultiTaskInferencer: the config names no size of the network input, so each picture is taken at its '
                'own; give size=(height, width) if the network was trained at another one'
            )

    def __call__(self, inputs: Inputs, batch_size: int = 1, out_dir: str | Path | None = None) -> list[InferenceResult]:
        """Predicts on all inputs; see :meth:`stream`, which holds one batch at a time, for videos and large folders.

        Returns:
            One result per picture or frame, in order; those with ``error`` could not be read.
        """
        results = list(self.stream(inputs, batch_size, out_dir))
        failed = sum(result.error is not None for result in results)
        if failed:
            _warn(f'MultiTaskInferencer: {failed} of {len(results)} inputs failed')
        return results

    def stream(
        self, inputs: Inputs, batch_size: int = 1, out_dir: str | Path | None = None
    ) -> Generator[InferenceResult, None, None]:
        """Predicts one batch after the other.

        Args:
            inputs: An array (H, W, 3) RGB, uint8 or float in [0, 1]; the path of an image, of a video or of a folder of
                images; or a list of these.
            batch_size: Pictures per forward pass, at most.
            out_dir: The folder for files, see :class:`~mmrepmtl.apis.result_files.ResultWriter`; None writes none.

        Raises:
            ValueError: Nothing to predict on, an array that is no picture, ``batch_size`` below 1, or an ``out_dir``
                that cannot be written to or whose folders hold inputs. Nothing is written then.
            OSError: The disk is full, or the folder can no longer be written to. The results so far are whole.
        """
        if batch_size < 1:
            raise ValueError(f'MultiTaskInferencer: batch_size={batch_size} must be at least 1')
        sources = find_inputs(inputs, self.max_pixels)
        pictures = chain.from_iterable(source.read() for source in sources)
        if out_dir is None:
            yield from self._results(pictures, batch_size)
            return
        writer = ResultWriter(out_dir, self.targets_meta, self.head_targets, self.checkpoint)
        files = [source.path for source in sources if source.path is not None]
        writer.prepare(files, [source.video for source in sources if source.video])
        with closing(writer):
            for result in self._results(pictures, batch_size):
                if result.error is None:
                    self._write(writer, result)
                yield result
                yield from self._broken_videos(writer)
        yield from self._broken_videos(writer)

    def _write(self, writer: ResultWriter, result: InferenceResult) -> None:
        """Writes the files of a result; what concerns this picture alone, such as a name, becomes its error."""
        try:
            result.files = writer.write(result)
        except (OSError, ValueError, MemoryError) as error:
            if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
                raise
            result.error = f'its results cannot be written: {error or type(error).__name__}'
            _warn(f'{result.source}: {result.error}')

    def _broken_videos(self, writer: ResultWriter) -> Iterator[InferenceResult]:
        while writer.broken_videos:
            path, reason = writer.broken_videos.popitem()
            _warn(f'{path}: {reason}')
            yield InferenceResult(path.stem, str(path), error=reason, video=path.stem)

    def _results(self, pictures: Iterator[Picture], batch_size: int) -> Iterator[InferenceResult]:
        batch: list[tuple[InferenceResult, Prepared | None]] = []
        for picture in pictures:
            result, prepared = self._prepare(picture)
            due = [waiting for _, waiting in batch if waiting is not None]
            unequal = prepared is not None and any(waiting.inputs.shape != prepared.inputs.shape for waiting in due)
            if len(due) == batch_size or unequal:
                yield from self._predict(batch)
                batch = []
            batch.append((result, prepared))
        yield from self._predict(batch)

    def _prepare(self, picture: Picture) -> tuple[InferenceResult, Prepared | None]:
        result = InferenceResult(
            picture.name, picture.source, video=picture.video, fps=picture.fps, notes=picture.notes
        )
        result.error, prepared = picture.error, None
        if picture.img is not None:
            try:
                prepared = self.pipeline(picture.img, picture.source)
            except (ValueError, MemoryError, cv2.error) as error:
                result.error = str(error).removeprefix(f'{picture.source}: ')
        if picture.img is None or prepared is None:
            _warn(f'{picture.source}: {result.error}')
            return result, None
        for note in picture.notes:
            _warn(f'{picture.source}: {note}')
        result.image = np.rint(255 * picture.img).astype(np.uint8)
        result.network_size = prepared.content
        return result, prepared

    def _predict(self, batch: list[tuple[InferenceResult, Prepared | None]]) -> list[InferenceResult]:
        """Fills in the predictions of a batch; where it fails, those of each picture alone, or why there are none."""
        due = [(result, prepared) for result, prepared in batch if prepared is not None]
        parts = [due] if due else []
        while parts:
            part = parts.pop()
            # Networks refuse sizes in many ways: assertions, shapes that do not fit, a lack of memory.
            try:
                self._fill_in(part)
            except Exception as error:
                if len(part) > 1:
                    parts += [[pair] for pair in reversed(part)]
                    continue
                result = part[0][0]
                result.predictions = {}
                reason = next(iter(str(error).splitlines()), '')
                result.error = f'cannot be predicted on: {type(error).__name__}: {reason}'
                _warn(f'{result.source}: {result.error}')
        return [result for result, _ in batch]

    @torch.no_grad()
    def _fill_in(self, due: list[tuple[InferenceResult, Prepared]]) -> None:
        samples = [prepared.data_sample for _, prepared in due]
        data = dict(inputs=[prepared.inputs for _, prepared in due], data_samples=samples)
        data = self.model.data_preprocessor(data, training=False)
        for task, output in self.model.raw_outputs(data['inputs']).items():
            head = self.model.heads[task]
            whole = [] if isinstance(head, DenseHead) else head.predict(output, data['data_samples'])
            for index, (result, prepared) in enumerate(due):
                if not output[index].isfinite().all():
                    _warn(f'{result.source}: the network output of task {task!r} is not finite')
                if isinstance(head, DenseHead):
                    assert result.size is not None  # it was prepared from a picture
                    value = at_size(head, output[index], prepared.content, result.size)
                else:
                    value = whole[index]
                result.predictions[task] = to_array(value)


def at_size(head: DenseHead, output: Tensor, content: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The prediction of a dense head at another size.

    Args:
        head: The head.
        output: (C, H', W') raw output, at the size of the network's input.
        content: (h, w) at the top left that is no padding.
        size: (H, W) of the prediction.
    """
    output = full_precision(output)[None, :, : content[0], : content[1]]
    if tuple(output.shape[-2:]) != tuple(size):
        output = F.interpolate(output, size=tuple(size), mode='bilinear', align_corners=False)
    return head.prediction(output)[0]


def _warn(message: str) -> None:
    print_log(one_line(message), logger='current', level=logging.WARNING)
