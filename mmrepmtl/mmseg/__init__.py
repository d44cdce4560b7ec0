"""The models of this package as mmseg's segmentors: for its inferencer, visualiser, test-time augmentation and windows.

Importing this subpackage needs mmseg and registers what is here in mmengine's own registries, so that configs of any
default scope find it by its plain name: ``custom_imports = dict(imports=['mmrepmtl', 'mmrepmtl.mmseg'])``.

Raises:
    ImportError: mmseg is not installed; says what to install.
"""

from mmrepmtl.utils.mmseg import import_mmseg

# Its data sets too: mmengine would import them a moment later, with messages about packages that nobody needs.
import_mmseg(__name__, 'models', 'datasets')

from .segmentor import MultiTaskSegmentor  # noqa: E402
from .tta import MultiTaskTTAModel  # noqa: E402
from .visualizer import MultiTaskLocalVisualizer  # noqa: E402

__all__ = ['MultiTaskLocalVisualizer', 'MultiTaskSegmentor', 'MultiTaskTTAModel']
