"""A project's own parts for mmseg: a data set with depth, a depth head, a segmentor with two heads.

Plain mmseg; nothing here knows of multi-task methods.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from mmengine.structures import PixelData
from mmseg.datasets import BaseSegDataset
from mmseg.models import EncoderDecoder
from mmseg.models.decode_heads import FCNHead
from mmseg.registry import DATASETS, MODELS
from mmseg.structures import SegDataSample
from mmseg.utils import add_prefix
from torch import Tensor

from mmrepmtl.datasets.synth import CLASSES, PALETTE


@DATASETS.register_module()
class RoomsDataset(BaseSegDataset):
    """Images with label and depth maps of the same names, as make_data.py writes them."""

    METAINFO = dict(classes=CLASSES, palette=PALETTE)

    def load_data_list(self) -> list[dict]:
        """mmseg's list, and where the depth of each image lies."""
        folder = Path(self.data_prefix['depth_map_path'])
        return [
            dict(item, depth_map_path=str(folder / Path(item['img_path']).name)) for item in super().load_data_list()
        ]


@MODELS.register_module()
class DepthFCNHead(FCNHead):
    """An FCN that predicts depth (B, 1, H, W) in metres, with the L1 loss over the valid pixels."""

    def forward(self, inputs: list[Tensor]) -> Tensor:
        """Positive depths."""
        return F.softplus(super().forward(inputs))

    def loss_by_feat(self, seg_logits: Tensor, batch_data_samples: list[SegDataSample]) -> dict[str, Tensor]:
        """The mean absolute error where the truth is above 0 (255 is mmseg's padding)."""
        truth = torch.stack([sample.gt_depth_map.data for sample in batch_data_samples])
        depth = F.interpolate(seg_logits, truth.shape[-2:], mode='bilinear', align_corners=self.align_corners)
        valid = (truth > 0) & (truth < 255)
        return dict(loss_l1=(depth - truth)[valid].abs().mean())


@MODELS.register_module()
class TwoHeadSegmentor(EncoderDecoder):
    """An EncoderDecoder with one more head, ``depth_head``, whose losses have the prefix ``depth.``."""

    def __init__(self, depth_head: dict, **kwargs) -> None:
        super().__init__(**kwargs)
        self.depth_head = MODELS.build(depth_head)

    def loss(self, inputs: Tensor, data_samples: list[SegDataSample]) -> dict[str, Tensor]:
        """``decode.loss_ce`` and ``depth.loss_l1``, from one pass of the backbone."""
        features = self.extract_feat(inputs)
        losses = self._decode_head_forward_train(features, data_samples)
        return losses | add_prefix(self.depth_head.loss(features, data_samples, self.train_cfg), 'depth')

    def predict(self, inputs: Tensor, data_samples: list[SegDataSample]) -> list[SegDataSample]:
        """``pred_sem_seg`` and ``pred_depth_map`` of whole images."""
        features = self.extract_feat(inputs)
        metas = [sample.metainfo for sample in data_samples]
        logits = self.decode_head.predict(features, metas, self.test_cfg)
        depths = self.depth_head.predict(features, metas, self.test_cfg)
        samples = self.postprocess_result(logits, data_samples)
        for depth, sample in zip(depths, samples, strict=True):
            depth = F.interpolate(depth[None], sample.ori_shape[:2], mode='bilinear', align_corners=self.align_corners)
            sample.set_data(dict(pred_depth_map=PixelData(data=depth[0])))
        return samples
