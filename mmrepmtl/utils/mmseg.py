"""mmseg is optional: what needs it imports it here, quietly, or says what to install."""

import io
import sys
import warnings
from contextlib import redirect_stdout
from importlib import import_module

from mmrepmtl.utils.stack import INSTALL_MM

#: mmseg and mmcv print these on import if optional packages are absent that no part of ours uses.
_PRINTED = 'Could not import OneDL'
_WARNED = 'Fail to import ``MultiScaleDeformableAttention``'


def import_mmseg(user: str, *modules: str) -> None:
    """Imports ``mmseg.MODULE`` for each of ``modules`` without its messages about optional packages.

    Args:
        user: The part that needs mmseg, for the error.
        modules: For example ``'models'``; their classes are registered with mmseg's registries then.

    Raises:
        ImportError: mmseg is not installed; says what to install.
    """
    try:
        import_module('mmseg')
    except ModuleNotFoundError as error:
        if error.name != 'mmseg':
            raise
        raise ImportError(f'{user} needs mmseg, which is not installed: {INSTALL_MM}') from error
    printed = io.StringIO()
    try:
        with redirect_stdout(printed), warnings.catch_warnings():
            warnings.filterwarnings('ignore', message=_WARNED)
            for module in modules:
                import_module(f'mmseg.{module}')
    finally:
        sys.stdout.writelines(line for line in printed.getvalue().splitlines(True) if _PRINTED not in line)
