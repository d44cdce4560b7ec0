from collections.abc import Sequence

import torch
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmseg.models.segmentors import SegTTAModel
from mmseg.structures import SegDataSample

from mmrepmtl.models.losses import unit_vectors
from mmrepmtl.structures import KINDS

from .samples import as_pixel_data


@MMENGINE_MODELS.register_module()
class MultiTaskTTAModel(SegTTAModel):
    """Test-time augmentation of a :class:`MultiTaskSegmentor`: the mean over the augmented copies, for every task.

    The segmentor has undone flips (also in the directions of normals) and sizes. Class probabilities, depths and
    probabilities are averaged, normals are averaged and brought to length 1. mmseg's own SegTTAModel would average the
    segmentation only, and leave of the other tasks what the last copy gave.

    Depths are averaged as predicted: an enlarged copy is to the network what a nearer camera sees, and nothing here
    corrects for it. Flips alone are safe.
    """

    def merge_preds(self, data_samples_list: Sequence[Sequence[SegDataSample]]) -> list[SegDataSample]:
        """One sample for each image from the samples of its copies, with the truth of the first."""
        return [self._merge(copies) for copies in data_samples_list]

    def _merge(self, copies: Sequence[SegDataSample]) -> SegDataSample:
        merged = copies[0].new()
        for task, field in self.module.fields.items():
            kind = self.module.heads[task].kind
            if task == self.module.segmentation:
                probability = torch.stack([sample.seg_logits.data.softmax(dim=0) for sample in copies]).mean(dim=0)
                merged.set_data(dict(seg_logits=as_pixel_data(probability.log(), 'logits')))
                mean = probability.argmax(dim=0)
            else:
                mean = torch.stack([sample.get(f'pred_{field}').data for sample in copies]).float().mean(dim=0)
                if KINDS[kind].directions:
                    mean = unit_vectors(mean[None])[0]
            merged.set_data({f'pred_{field}': as_pixel_data(mean, kind)})
        return merged
