"""Pictures of samples on mmengine's visualisation backends, and the hook that draws them during a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS, VISUALIZERS
from mmengine.visualization import MLflowVisBackend, Visualizer
from torch import Tensor

from mmrepmtl.structures import MultiTaskDataSample

from .draw import write_picture
from .sheet import task_sheet


@VISUALIZERS.register_module()
class MultiTaskVisualizer(Visualizer):
    """mmengine's visualiser, whose ``add_datasample`` draws all tasks of a sample; see :func:`task_sheet`.

    The backends decide where the pictures go: ``LocalVisBackend`` (``vis_data/vis_image``),
    ``TensorboardVisBackend``, ``WandbVisBackend``, ``MLflowVisBackend`` and mmengine's others.

    Args:
        name: The name of this instance.
        head_targets: {task: name of its target}. None: :class:`MultiTaskVisualizationHook` sets it; elsewhere each task
            is drawn against the target of its own name.
        **kwargs: Those of mmengine's ``Visualizer``: ``vis_backends``, ``save_dir``, ...

    Attributes:
        dataset_meta: ``metainfo`` of the data set, with its ``targets``; mmengine's loops set it.
    """

    def __init__(self, name: str = 'visualizer', head_targets: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(name, **kwargs)
        self.head_targets = head_targets

    @master_only
    def add_datasample(
        self,
        name: str,
        image: Tensor | np.ndarray,
        data_sample: MultiTaskDataSample,
        draw_gt: bool = True,
        out_file: str | Path | None = None,
        step: int = 0,
    ) -> None:
        """Draws a sample and hands the picture to all backends.

        Args:
            name: Identifier of the picture; LocalVisBackend's file is NAME_STEP.png.
            image: (3, H, W) float RGB in [0, 1], or (H, W, 3) uint8 RGB.
            data_sample: With predictions, and with the targets that are known.
            draw_gt: Whether to draw truth and error.
            out_file: Write it to this file (.png, .jpg) instead.
            step: Global step of the backends.

        Raises:
            ValueError: ``dataset_meta`` has no targets; or as for :func:`task_sheet`.
        """
        targets_meta = (self.dataset_meta or {}).get('targets')
        if targets_meta is None:
            raise ValueError(
                'MultiTaskVisualizer: dataset_meta names no targets; set visualizer.dataset_meta = dataset.metainfo'
            )
        # Sorted, since a data element keeps its entries in a set.
        head_targets = self.head_targets or {task: task for task in sorted(data_sample.predictions)}
        picture = task_sheet(image, data_sample, targets_meta, head_targets, title=name, draw_gt=draw_gt)
        if out_file is None:
            self.add_image(name, picture, step)
        else:
            write_picture(out_file, picture)

    @master_only
    def add_image(self, name: str, image: np.ndarray, step: int = 0) -> None:
        """Hands a picture (H, W, 3) uint8 RGB to all backends.

        MLflow's gets NAME_STEP.png for its name: it wants a file name, and leaves the step out.
        """
        for backend in self._vis_backends.values():
            named = f'{name}_{step}.png' if isinstance(backend, MLflowVisBackend) else name
            backend.add_image(named, image, step)


@HOOKS.register_module()
class MultiTaskVisualizationHook(Hook):
    """Draws every N-th image of each validation and test with :class:`MultiTaskVisualizer`.

    Which images are drawn follows from their number in the data set, so they are the same ones each time; the step of
    the picture is the iteration of the training. In a distributed run the first process draws those of its own share.

    Args:
        interval: Images whose number is a multiple of it are drawn; 0 draws none. Each takes a few hundredths of a
            second.

    Raises:
        ValueError: A negative interval; when a run starts: another visualiser than :class:`MultiTaskVisualizer`.
    """

    priority = 'LOW'

    def __init__(self, interval: int = 0) -> None:
        if interval < 0:
            raise ValueError(f'MultiTaskVisualizationHook: interval={interval} must be 0 (off) or more')
        self.interval = interval

    def before_run(self, runner) -> None:
        """Tells the visualiser which target belongs to which task."""
        if not self.interval:
            return
        if not isinstance(runner.visualizer, MultiTaskVisualizer):
            raise ValueError(
                f'MultiTaskVisualizationHook draws with visualizer=dict(type="MultiTaskVisualizer", ...), the config '
                f'has {type(runner.visualizer).__name__}'
            )
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        heads = getattr(model, 'heads', {})
        if runner.visualizer.head_targets is None and heads:
            runner.visualizer.head_targets = {task: head.target for task, head in heads.items()}

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Draws those of a validation batch that are due."""
        self._draw(runner, 'val', data_batch, outputs)

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Draws those of a test batch that are due."""
        self._draw(runner, 'test', data_batch, outputs)

    @master_only
    def _draw(self, runner, stage: str, data_batch: dict, outputs: Sequence[MultiTaskDataSample]) -> None:
        for image, sample in zip(data_batch['inputs'], outputs, strict=True) if self.interval else ():
            number = sample.sample_idx
            if number % self.interval == 0:
                # No slash, of which LocalVisBackend would make a folder that is not there, and write nothing.
                name = f'{stage}_{number:06d}'
                runner.visualizer.add_datasample(name, image, sample.to('cpu'), step=runner.iter)
