from typing import Any

import mmcv
import numpy as np
import torch
from mmengine.dist import master_only
from mmengine.registry import VISUALIZERS
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from mmseg.visualization import SegLocalVisualizer

from mmrepmtl.structures import KINDS
from mmrepmtl.visualization.panels import make_pair, unlabelled_panel

from .samples import FIELDS

#: Kinds of what pipelines load, by mmseg's and our field names; predictions carry theirs.
_KINDS = {field: kind for kind, field in FIELDS.items() if field}


@VISUALIZERS.register_module()
class MultiTaskLocalVisualizer(SegLocalVisualizer):
    """mmseg's visualiser, which draws all tasks of a :class:`MultiTaskSegmentor`: one row each, truth | prediction.

    Segmentation is mmseg's own overlay. Depth has the colours of the truth's range in both columns, so that they can be
    compared (mmseg stretches each map by itself), normals and yes-or-no maps those of ``mmrepmtl.visualization``.

    Args:
        As SegLocalVisualizer.
    """

    @master_only
    def add_datasample(
        self,
        name: str,
        image: np.ndarray,
        data_sample: SegDataSample | None = None,
        draw_gt: bool = True,
        draw_pred: bool = True,
        show: bool = False,
        wait_time: float = 0,
        out_file: str | None = None,
        step: int = 0,
        with_labels: bool | None = True,
        with_image: bool | None = False,
    ) -> None:
        """Draws a sample; see ``SegLocalVisualizer.add_datasample``."""
        rows = {} if data_sample is None else _rows(data_sample, draw_gt, draw_pred)
        columns = [side for side in ('gt', 'pred') if any(row[side] is not None for row in rows.values())]
        drawn = [self._draw_row(image, field, row, columns, with_labels) for field, row in rows.items()]
        picture = np.concatenate(drawn, axis=0) if drawn else image
        if with_image and drawn:
            above = np.full((picture.shape[0], image.shape[1], 3), 255, dtype=np.uint8)
            above[: image.shape[0]] = image
            picture = np.concatenate((above, picture), axis=1)
        self.set_image(picture)
        if show:
            self.show(picture, win_name=name, wait_time=wait_time)
        if out_file is not None:
            mmcv.imwrite(mmcv.rgb2bgr(picture), out_file)
        else:
            self.add_image(name, picture, step)

    def _draw_row(
        self, image: np.ndarray, field: str, row: dict[str, Any], columns: list[str], with_labels: bool | None
    ) -> np.ndarray:
        size = image.shape[:2]
        if row['kind'] == 'segmentation':
            classes, palette = self.dataset_meta['classes'], self.dataset_meta['palette']
            cells = {
                side: self._draw_sem_seg(image, row[side], classes, palette, with_labels)
                for side in columns
                if row[side] is not None
            }
        else:
            arrays = {side: _array(row[side], row['kind']) for side in ('gt', 'pred') if row[side] is not None}
            prediction = arrays['pred' if 'pred' in arrays else 'gt']
            pair = make_pair(row['kind'], arrays.get('gt'), prediction, {}, size)
            cells = {side: cell for side, cell in (('gt', pair.truth), ('pred', pair.prediction)) if side in arrays}
        return np.concatenate([cells[side] if side in cells else unlabelled_panel(size) for side in columns], axis=1)


def _rows(sample: SegDataSample, draw_gt: bool, draw_pred: bool) -> dict[str, dict[str, Any]]:
    """{field: its kind, truth and prediction}."""
    rows: dict[str, dict[str, Any]] = {}
    for side, wanted in (('pred', draw_pred), ('gt', draw_gt)):
        for key in sample.keys() if wanted else ():
            field = key.removeprefix(f'{side}_')
            if field == key:
                continue
            value = sample.get(key)
            kind = value.metainfo.get('kind', rows.get(field, {}).get('kind', _KINDS.get(field)))
            if kind is not None:
                rows.setdefault(field, dict(kind=kind, gt=None, pred=None))[side] = value
    order = list(FIELDS)  # a data sample has none
    return dict(sorted(rows.items(), key=lambda item: (order.index(item[1]['kind']), item[0])))


def _array(value: PixelData, kind: str) -> np.ndarray:
    data = torch.as_tensor(value.data).detach().cpu().float().numpy()
    return data[0] if len(KINDS[kind].tensor) == 2 else data
