"""Multi-task learning with Rep-MTL, on PyTorch and mmengine.

Importing this package registers everything in it (``custom_imports = dict(imports=['mmrepmtl'])`` in a config). Without
mmengine there is nothing to register with: ``mmrepmtl.methods`` then works alone, on torch.
"""

from importlib import import_module

from mmrepmtl.utils.stack import check_imports, check_versions, has_mmengine, name_missing_mmengine
from mmrepmtl.version import __version__

__all__ = ['__version__', 'get_config']

check_versions()
if has_mmengine():
    check_imports()
    for part in ('datasets', 'engine', 'evaluation', 'models', 'visualization'):
        import_module(f'{__name__}.{part}')
else:
    name_missing_mmengine()


def get_config(config):
    """Reads a config of this package by its name (``FOLDER/NAME``), or any config file.

    Args:
        config: See :func:`mmrepmtl.apis.config_file.find_config`.

    Returns:
        ``mmengine.Config``, with the names of classes instead of classes.

    Raises:
        FileNotFoundError: There is no such config; says which are near.
    """
    # Importing `apis` with the package would slow each worker process down.
    return import_module(f'{__name__}.apis.config_file').get_config(config)
