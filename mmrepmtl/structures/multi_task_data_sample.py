from mmengine.structures import BaseDataElement
from torch import Tensor


class MultiTaskDataSample(BaseDataElement):
    """Ground truth and predictions of one image, by name.

    A target that is absent means "unlabelled here": the sample is left out of that task's loss and metrics.
    Conventions of the values, by kind of target:

    ================ ======================== =========================================================
    kind             target                   prediction
    ================ ======================== =========================================================
    segmentation     (H, W) int64, 255 void   (H, W) int64 class ids
    binary           (H, W) int64, 0 or 1,    (H, W) float, probability of 1
                     255 void
    depth            (1, H, W) float, metres, (1, H, W) float, metres
                     0 or less is invalid
    normals          (3, H, W) float, unit    (3, H, W) float, unit length
                     length, 0 0 0 is invalid
    classification   () int64                 (K,) float scores
    regression       (D,) float, NaN invalid  (D,) float
    ================ ======================== =========================================================

    The values live in the data elements ``gt`` and ``pred``, so that ``to(device)`` moves them and a metric, which
    receives ``to_dict()``, finds them under ``sample['gt'][name]`` and ``sample['pred'][task]``.

    Meta information (``metainfo``) holds ``sample_idx``, ``img_path``, ``ori_shape`` (H, W) and ``img_shape`` (H, W).
    """

    def set_target(self, name: str, value: Tensor) -> None:
        """Stores the ground truth of the target ``name``."""
        self._store('gt', name, value)

    def set_prediction(self, task: str, value: Tensor) -> None:
        """Stores the prediction of ``task``."""
        self._store('pred', task, value)

    @property
    def targets(self) -> dict[str, Tensor]:
        """Ground truth by target name; a name that is absent is unlabelled."""
        return dict(self.gt.items()) if 'gt' in self else {}

    @property
    def predictions(self) -> dict[str, Tensor]:
        """Predictions by task name."""
        return dict(self.pred.items()) if 'pred' in self else {}

    def _store(self, field: str, name: str, value: Tensor) -> None:
        if field not in self:
            self.set_data({field: BaseDataElement()})
        self.get(field).set_data({name: value})
