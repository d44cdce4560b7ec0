import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseDataPreprocessor
from torch import Tensor

from mmrepmtl.registry import MODELS
from mmrepmtl.structures import VOID, MultiTaskDataSample

#: Padding of dense floating-point targets: metres and unit vectors are invalid there. Class ids are void.
_INVALID = 0


@MODELS.register_module()
class MultiTaskDataPreprocessor(BaseDataPreprocessor):
    """Moves a batch to the device, normalises the images and stacks them.

    Images of unequal size are padded at the right and at the bottom to the largest, after normalisation and with 0.
    In training their dense targets are padded too, as void: (H, W) class ids with 255, (C, H, W) maps with 0, unless
    ``target_padding`` says otherwise. In evaluation targets keep their size; predictions are cut to it.

    Each sample's ``img_shape`` is set to the size before padding, ``pad_shape`` to the one after it.

    Args:
        mean, std: One value per channel (or one for all) in the units of the images, [0, 1]; ImageNet's are
            (0.485, 0.456, 0.406) and (0.229, 0.224, 0.225). None: no normalisation, as in the paper's recipes.
        size_divisor: Height and width are padded to a multiple of it.
        target_padding: {target name: padding value} for targets whose void is another one.
        non_blocking: Whether the host waits for the copies to the device.
    """

    def __init__(
        self,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        size_divisor: int = 1,
        target_padding: Mapping[str, float] | None = None,
        non_blocking: bool = False,
    ) -> None:
        super().__init__(non_blocking)
        if (mean is None) != (std is None):
            raise ValueError('MultiTaskDataPreprocessor: give both mean and std, or neither')
        if size_divisor < 1:
            raise ValueError(f'MultiTaskDataPreprocessor: size_divisor={size_divisor} must be at least 1')
        self.normalises = mean is not None
        if mean is not None and std is not None:
            if max(*mean, *std) > 1:
                raise ValueError(
                    f'MultiTaskDataPreprocessor: mean={tuple(mean)}, std={tuple(std)}; images are in '
                    '[0, 1], so divide values that are meant for [0, 255] by 255'
                )
            self.register_buffer('mean', torch.tensor(mean).view(-1, 1, 1), persistent=False)
            self.register_buffer('std', torch.tensor(std).view(-1, 1, 1), persistent=False)
        self.size_divisor = size_divisor
        self.target_padding = dict(target_padding or {})

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Makes the model's input.

        Args:
            data: ``inputs``, a list of (3, H, W) or a (B, 3, H, W) float tensor, RGB in [0, 1]; ``data_samples``, a
                list of :class:`MultiTaskDataSample`, or absent.
            training: Whether dense targets are padded with their images.

        Returns:
            ``inputs`` (B, 3, H, W) and ``data_samples``, a list or None, on the device.

        Raises:
            ValueError: The images are not floating-point (C, H, W), or a dense target that must be padded has another
                size than its image.
        """
        data = self.cast_data(data)
        images = list(data['inputs'])
        samples = data.get('data_samples')
        for image in images:
            if image.ndim != 3 or not image.is_floating_point():
                raise ValueError(
                    f'MultiTaskDataPreprocessor: an image of shape {tuple(image.shape)} and '
                    f'{image.dtype}; expected floating-point (C, H, W) in [0, 1]'
                )
        if samples is not None and len(samples) != len(images):
            raise ValueError(f'MultiTaskDataPreprocessor: {len(images)} images, but {len(samples)} data samples')
        height, width = self._batch_size_of(images)
        if samples is not None:
            for image, sample in zip(images, samples, strict=True):
                shape = (int(image.shape[-2]), int(image.shape[-1]))
                sample.set_metainfo(dict(img_shape=shape, pad_shape=(height, width)))
                if training and shape != (height, width):
                    self._pad_targets(sample, shape, (height, width))
        batch = torch.stack([_pad(self.normalise(image), (height, width), 0) for image in images])
        return dict(inputs=batch, data_samples=samples if samples is None else list(samples))

    def _batch_size_of(self, images: Sequence[Tensor]) -> tuple[int, int]:
        height, width = (max(image.shape[axis] for image in images) for axis in (-2, -1))
        return self._round_up(height), self._round_up(width)

    def _round_up(self, length: int) -> int:
        return math.ceil(length / self.size_divisor) * self.size_divisor

    def normalise(self, image: Tensor) -> Tensor:
        """Subtracts the mean and divides by the standard deviation, if the model asks for it; (..., 3, H, W)."""
        return (image - self.mean.to(image)) / self.std.to(image) if self.normalises else image

    def _pad_targets(self, sample: MultiTaskDataSample, shape: tuple[int, int], size: tuple[int, int]) -> None:
        for name, target in sample.targets.items():
            if target.ndim < 2:
                continue
            if tuple(target.shape[-2:]) != shape:
                raise ValueError(
                    f'Target {name!r} of {sample.get("img_path", "a sample")} has size '
                    f'{tuple(target.shape[-2:])}, its image {shape}; both are padded, so they must agree'
                )
            default = _INVALID if target.is_floating_point() else VOID
            sample.set_target(name, _pad(target, size, self.target_padding.get(name, default)))


def _pad(tensor: Tensor, size: tuple[int, int], value: float) -> Tensor:
    """Pads the last two dimensions at their ends to ``size``."""
    bottom, right = size[0] - tensor.shape[-2], size[1] - tensor.shape[-1]
    return F.pad(tensor, (0, right, 0, bottom), value=value) if bottom or right else tensor
