"""Names a stack of packages that cannot work, in one line, before its own errors do.

:func:`check_versions` reads the packages' metadata, so that nothing heavy is imported. :func:`check_imports` tries by
an import only what metadata cannot tell, and only if mmengine is present and would import it anyway.
"""

import importlib
import importlib.util
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from importlib.machinery import ModuleSpec

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

__all__ = ['check_imports', 'check_versions', 'find_problem', 'has_mmengine', 'name_missing_mmengine']

INSTALL_MM = "pip install 'mmrepmtl[mm]'"
INSTALL_HEADLESS = 'pip uninstall -y opencv-python && pip install --force-reinstall --no-deps opencv-python-headless'
INSTALL_PAIR = 'pip install --upgrade torch torchvision (both in one command, from one index)'

# The distributions that write into the same import package: at most one of each may be installed.
PROVIDERS = {
    'mmengine': ('onedl-mmengine', 'mmengine', 'mmengine-lite'),
    'mmcv': ('onedl-mmcv', 'mmcv', 'mmcv-lite', 'mmcv-full'),
    'mmseg': ('onedl-mmsegmentation', 'mmsegmentation'),
}
# Distributions whose declared requirements on one another and on torch are checked.
CHECKED = ('torch', 'torchvision', *(name for names in PROVIDERS.values() for name in names))

# The parts of this package that are built on mmengine; the others (methods, utils, ...) need torch alone.
MMENGINE_PARTS = ('apis', 'datasets', 'engine', 'evaluation', 'models', 'registry', 'structures', 'visualization')


@dataclass(frozen=True)
class Undeclared:
    """A need that a distribution has but does not declare: ``name`` works with ``other`` in ``versions`` only."""

    name: str
    other: str
    versions: str
    because: str
    install: str = INSTALL_MM


UNDECLARED = (
    Undeclared(
        'mmengine',
        'torch',
        '<2.6',
        'later torch loads weights only, so no run can be resumed',
        f'pip uninstall -y mmengine mmcv mmcv-lite mmsegmentation && {INSTALL_MM}',
    ),
    Undeclared(
        'mmengine-lite',
        'torch',
        '<2.6',
        'later torch loads weights only, so no run can be resumed',
        f'pip uninstall -y mmengine-lite mmcv mmcv-lite mmsegmentation && {INSTALL_MM}',
    ),
    Undeclared(
        'mmsegmentation', 'mmcv', '>=2.0.0rc4,<2.2', 'it refuses every other on import', "pip install 'mmcv==2.1.0'"
    ),
    Undeclared(
        'mmsegmentation',
        'onedl-mmcv',
        '<2.2',
        'it refuses later ones on import',
        f'pip uninstall -y mmsegmentation && {INSTALL_MM}',
    ),
    Undeclared(
        'mmsegmentation',
        'mmcv-lite',
        '<0',
        'it imports mmcv.ops, which mmcv-lite lacks',
        "pip uninstall -y mmcv-lite && pip install 'mmcv==2.1.0'",
    ),  # '<0': with no version of it
)


@dataclass(frozen=True)
class Installed:
    """The installed packages: {distribution: version} and {distribution: its declared requirements}."""

    versions: Mapping[str, str]
    requires: Mapping[str, list[str]] = field(default_factory=dict)
    platform: tuple[str, str] = ('linux', 'x86_64')  # `sys.platform` and `platform.machine()`


def read_installed() -> Installed:
    """Read versions and requirements of the distributions in ``CHECKED`` from their metadata."""
    versions, requires = {}, {}
    for name in CHECKED:
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        versions[name] = distribution.version
        requires[name] = distribution.requires or []
    return Installed(versions, requires, (sys.platform, platform.machine()))


def find_problem(installed: Installed) -> str | None:
    """Return one line that says why ``installed`` cannot work and what to install, or None."""
    finders: tuple[Callable[[Installed], str | None], ...] = (
        _find_two_providers,
        _find_old_mmcv,
        _find_missing_mmcv,
        _find_undeclared,
        _find_unmet_requirement,
        _find_cpu_torch_alone,
    )
    return next((problem for finder in finders if (problem := finder(installed))), None)


def check_versions() -> None:
    """Read the installed versions; where mmengine and mmcv are both absent, only torch and torchvision are judged.

    Raises:
        ImportError: with one line that says what cannot work together and what to install.
    """
    problem = find_problem(read_installed())
    if problem:
        raise ImportError(f'mmrepmtl: {problem}')


def check_imports() -> None:
    """Import the two packages that fail for reasons outside their metadata, cv2 and torchvision.

    Raises:
        ImportError: with one line that says what to install.
    """
    try:
        importlib.import_module('cv2')
    except ImportError as error:
        raise ImportError(
            f'mmrepmtl: mmengine needs cv2, which cannot be imported here ({_first_line(error)}); '
            f'machines without a display need its headless build: {INSTALL_HEADLESS}'
        ) from error
    try:
        importlib.import_module('torchvision')
    except (ImportError, RuntimeError, OSError) as error:  # RuntimeError: 'operator torchvision::nms does not exist'
        raise ImportError(
            f'mmrepmtl: torchvision does not fit the installed torch ({_first_line(error)}): {INSTALL_PAIR}'
        ) from error


def has_mmengine() -> bool:
    """Tell whether ``mmengine`` (of either distribution) can be found, without importing it."""
    return importlib.util.find_spec('mmengine') is not None


def name_missing_mmengine() -> None:
    """From now on, importing a part of this package that needs mmengine says what to install.

    Without it, each of those imports would end in "No module named 'mmengine'", and installing the package of that name
    is the wrong answer.
    """
    if not any(isinstance(finder, _MissingMMEngine) for finder in sys.meta_path):
        sys.meta_path.insert(0, _MissingMMEngine())


class _MissingMMEngine:
    """Import finder that refuses the parts of this package that need mmengine; it finds nothing itself."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        package, _, part = fullname.partition('.')
        if package == 'mmrepmtl' and part.split('.')[0] in MMENGINE_PARTS:
            raise ModuleNotFoundError(
                f'{fullname} needs mmengine, which is not installed: {INSTALL_MM} (mmrepmtl.methods works without it)',
                name='mmengine',
            )
        return None


def _find_two_providers(installed: Installed) -> str | None:
    for import_name, names in PROVIDERS.items():
        present = [name for name in names if name in installed.versions]
        if len(present) > 1:
            return (
                f"{' and '.join(present)} are both installed and overwrite each other's {import_name}: "
                f'pip uninstall -y {" ".join(present)} && {INSTALL_MM}'
            )
    return None


def _find_old_mmcv(installed: Installed) -> str | None:
    for name in PROVIDERS['mmcv']:
        version = installed.versions.get(name)
        if version and not _satisfies(version, '>=2.0.0rc1'):
            return (
                f'{name} {version} is older than mmengine itself, mmcv 2 is needed: '
                f'pip uninstall -y {name} && {INSTALL_MM}'
            )
    return None


def _find_missing_mmcv(installed: Installed) -> str | None:
    mmengine = next((name for name in PROVIDERS['mmengine'] if name in installed.versions), None)
    if mmengine and not any(name in installed.versions for name in PROVIDERS['mmcv']):
        extra = INSTALL_MM if mmengine.startswith('onedl-') else "pip install 'mmrepmtl[mm-upstream]'"
        return f'{mmengine} {installed.versions[mmengine]} lacks mmcv, which the transforms need: {extra}'
    return None


def _find_undeclared(installed: Installed) -> str | None:
    for need in UNDECLARED:
        version, other = installed.versions.get(need.name), installed.versions.get(need.other)
        if version and other and not _satisfies(other, need.versions):
            return f'{need.name} {version} cannot work with {need.other} {other} ({need.because}): {need.install}'
    return None


def _find_unmet_requirement(installed: Installed) -> str | None:
    for name, version in installed.versions.items():
        for requirement in map(Requirement, installed.requires.get(name, [])):
            wanted = canonicalize_name(requirement.name)
            applies = requirement.marker is None or requirement.marker.evaluate({'extra': ''})
            if wanted not in CHECKED or not applies:
                continue
            alternatives = next((names for names in PROVIDERS.values() if wanted in names), (wanted,))
            present = {other: installed.versions[other] for other in alternatives if other in installed.versions}
            if any(requirement.specifier.contains(other, prereleases=True) for other in present.values()):
                continue
            found = ' and '.join(' '.join(pair) for pair in present.items()) or 'none'
            install = INSTALL_PAIR if name == 'torchvision' else INSTALL_MM
            return f'{name} {version} needs {wanted}{requirement.specifier}, but {found} is installed: {install}'
    return None


def _find_cpu_torch_alone(installed: Installed) -> str | None:
    """Elsewhere than on x86-64 Linux the ordinary torchvision is built without CUDA and fits a CPU-only torch."""
    torch, torchvision = (installed.versions.get(name, '') for name in ('torch', 'torchvision'))
    if installed.platform == ('linux', 'x86_64') and torch.endswith('+cpu') and torchvision and '+' not in torchvision:
        return (
            f'torch {torch} is a CPU-only build, torchvision {torchvision} is not and will miss torchvision::nms: '
            f'pip uninstall -y torch torchvision && {INSTALL_PAIR}'
        )
    return None


def _satisfies(version: str, specifier: str) -> bool:
    return SpecifierSet(specifier).contains(version, prereleases=True)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
