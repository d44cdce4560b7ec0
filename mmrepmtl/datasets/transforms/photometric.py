import cv2
import numpy as np
from mmcv.transforms import BaseTransform

from mmrepmtl.registry import TRANSFORMS

# ITU-R BT.601 luma of R, G, B.
LUMA = np.array([0.299, 0.587, 0.114])


@TRANSFORMS.register_module()
class PhotometricJitter(BaseTransform):
    """Changes brightness, contrast and saturation of the image by random factors; targets stay.

    In this order: multiply by b; blend with the image's mean grey by c; blend with each pixel's grey by t; clip to
    [0, 1]. Factors are uniform in [1 - strength, 1 + strength].

    Args:
        brightness, contrast, saturation (float): Strengths in [0, 1]. Default to 0.2.
        prob (float): Probability of changing an image at all. Defaults to 1.

    Raises:
        ValueError: If an argument is outside [0, 1].
    """

    def __init__(
        self, brightness: float = 0.2, contrast: float = 0.2, saturation: float = 0.2, prob: float = 1.0
    ) -> None:
        self.strengths = dict(brightness=brightness, contrast=contrast, saturation=saturation)
        self.prob = prob
        for name, value in dict(self.strengths, prob=prob).items():
            if not 0 <= value <= 1:
                raise ValueError(f'PhotometricJitter: {name} must be in [0, 1], got {value}')

    def transform(self, results: dict) -> dict:
        """Transforms ``results`` in place and returns it."""
        # All numbers are drawn in any case, so that later transforms get the same ones.
        skip = np.random.rand() >= self.prob
        strengths = np.array(list(self.strengths.values()))
        brightness, contrast, saturation = 1 + strengths * np.random.uniform(-1, 1, size=3)
        if not skip:
            results['img'] = jitter(results['img'], brightness, contrast, saturation)
        return results

    def __repr__(self) -> str:
        arguments = ', '.join(f'{name}={value}' for name, value in self.strengths.items())
        return f'{type(self).__name__}({arguments}, prob={self.prob})'


def jitter(img: np.ndarray, brightness: float, contrast: float, saturation: float) -> np.ndarray:
    """Applies the three factors to (H, W, 3) float32 RGB in [0, 1]; 1, 1, 1 changes nothing."""
    # All three are linear in the colours but for the mean, so they are one 3 x 4 matrix.
    mean = LUMA @ cv2.mean(img)[:3]
    matrix = brightness * contrast * (saturation * np.eye(3) + (1 - saturation) * LUMA[None])
    offset = np.full((3, 1), brightness * (1 - contrast) * mean)
    return np.clip(cv2.transform(img, np.hstack([matrix, offset])), 0, 1)
