"""Multi-task learning with Rep-MTL, on PyTorch and mmengine.

Importing this package registers everything in it (``custom_imports = dict(imports=['mmrepmtl'])`` in a config). Without
mmengine there is nothing to register with: ``mmrepmtl.methods`` then works alone, on torch.
"""
from importlib import import_module

from mmrepmtl.utils.stack import check_imports, check_versions, has_mmengine, name_missing_mmengine
from mmrepmtl.version import __version__

__all__ = ['__version__']

check_versions()
if has_mmengine():
    check_imports()
    for part in ('datasets', 'engine', 'evaluation', 'models', 'visualization'):
        import_module(f'{__name__}.{part}')
else:
    name_missing_mmengine()
