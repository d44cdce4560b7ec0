"""Config files: those of a user, and those of this package, which are found by their names anywhere."""

import difflib
from pathlib import Path

from mmengine.config import Config
from mmengine.utils import import_modules_from_strings

from mmrepmtl.utils.config_types import drop_imported, name_types

PACKAGE = Path(__file__).resolve().parents[1]
PREFIX = 'mmrepmtl::'


def configs_folder() -> Path:
    """The folder of this package's configs, of an installed package or of a checkout.

    Raises:
        FileNotFoundError: The package was installed without them.
    """
    for folder in (PACKAGE / '.mim' / 'configs', PACKAGE.parent / 'configs'):
        if (folder / '_base_').is_dir():
            return folder
    raise FileNotFoundError(f'{PACKAGE}: this installation of mmrepmtl has no configs; install it again')


def find_config(config: str | Path) -> Path:
    """The file that a name means: a file of the user, else a config of this package.

    Args:
        config: A path, or ``FOLDER/NAME`` below this package's ``configs``; ``.py``, a leading ``configs/`` and
            mmengine's prefix ``mmrepmtl::`` make no difference.

    Raises:
        FileNotFoundError: There is none; says which of this package are nearest.
    """
    path, folder = Path(config).expanduser(), configs_folder()
    if path.is_file():
        return path
    name = str(config).removeprefix(PREFIX).removeprefix('configs/').removesuffix('.py')
    inside = (folder / f'{name}.py').resolve()
    # A path such as ../../secret.py names no config of ours.
    if inside.is_file() and inside.is_relative_to(folder.resolve()):
        return folder / f'{name}.py'
    near = difflib.get_close_matches(name, available_configs(), n=3, cutoff=0.5)
    hint = f'; near it, mmrepmtl has {", ".join(near)}' if near else ''
    raise FileNotFoundError(f'there is no config {config}, neither as a file nor in mmrepmtl{hint}')


def available_configs() -> list[str]:
    """Names of this package's configs that can be trained: ``FOLDER/NAME``."""
    folder = configs_folder()
    files = (path.relative_to(folder) for name in sorted(folder.glob('[!_]*')) for path in sorted(name.glob('*.py')))
    return [str(path.with_suffix('')) for path in files]


def get_config(config: str | Path) -> Config:
    """Reads a config of this package, or any other file.

        cfg = mmrepmtl.get_config('nyuv2/rep-mtl_resnet50-d8_deeplab_b8-200e_nyuv2-288x384')

    Args:
        config: See :func:`find_config`.

    Raises:
        FileNotFoundError: There is no such config.
        ValueError: A class in it cannot be imported.
    """
    return read_config(find_config(config))


def read_config(path: str | Path) -> Config:
    """Reads a config file with names of types throughout, also one of mmengine's pure-Python configs.

    Args:
        path: The file.

    Raises:
        ValueError: A class in it cannot be imported; names the key.
    """
    cfg = Config.fromfile(path)
    drop_imported(cfg)
    # mmengine does so for text configs only, although both kinds may name classes by text; a second time costs nothing.
    if cfg.get('custom_imports'):
        import_modules_from_strings(**cfg.custom_imports)
    try:
        name_types(cfg)
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error
    return cfg
