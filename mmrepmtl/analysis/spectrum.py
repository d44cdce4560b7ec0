"""Power-law exponents of the spectra of weight matrices (HT-SR theory), averaged over the encoder and each head.

The eigenvalues of W^T W of a well trained layer have a tail of density ~ lambda^-alpha with alpha between 2 and 4;
above 6 the layer is over-parameterised or barely trained. The fit is that of ``weightwatcher``.

Source: Martin and Mahoney, JMLR 2021 (arXiv 1810.01075); Rep-MTL (arXiv 2507.21049), its analysis of NYUv2.
"""

import contextlib
import io
import logging
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from mmrepmtl.models import MultiTaskModel

#: Fits to fewer eigenvalues than this say nothing: a head's last layer, say, with as many as it has outputs.
MIN_EIGENVALUES = 10
#: Range of alpha of a well trained layer, and where over-parameterised begins.
WELL_TRAINED, OVER = (2.0, 4.0), 6.0
INSTALL = "pip install 'mmrepmtl[analysis]', or pip install 'weightwatcher>=0.7,<0.8'"


@dataclass(frozen=True)
class Layer:
    """The fit of one layer.

    Attributes:
        name: Its module's.
        group: 'encoder', 'neck', the task of its head, or a child of a model that is not ours.
        alpha: The exponent.
        xmin: The eigenvalue at which the tail begins.
        distance: Kolmogorov-Smirnov distance of tail and fit.
        eigenvalues: Their number, all kernel positions of a convolution together.
    """

    name: str
    group: str
    alpha: float
    xmin: float
    distance: float
    eigenvalues: int


class Spectrum(NamedTuple):
    """The result of :func:`spectrum` for one model: its layers in order, and {name: reason} of those without a fit."""

    layers: list[Layer]
    skipped: dict[str, str]

    def means(self) -> dict[str, float]:
        """{group: mean alpha of its layers}, in the order of the model."""
        groups: dict[str, list[float]] = {}
        for layer in self.layers:
            groups.setdefault(layer.group, []).append(layer.alpha)
        return {group: statistics.fmean(alphas) for group, alphas in groups.items()}


#: Fits of the layers of a model: dicts with 'longname', 'alpha', 'xmin', 'D' and 'num_evals', as weightwatcher's table.
Fit = Callable[[nn.Module], Iterable[Mapping[str, Any]]]


def spectrum(model: nn.Module, fit: Fit | None = None) -> Spectrum:
    """Fits the spectrum of every linear and convolutional layer of a model.

    Args:
        model: Any; one of ours has the groups encoder, neck and its tasks, another its children.
        fit: What fits; None: :func:`weightwatcher_fit`.

    Raises:
        ValueError: weightwatcher is not installed; the model has no layer with enough eigenvalues.
    """
    rows = {row['longname']: row for row in (fit or weightwatcher_fit)(model)}
    layers, skipped = [], {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            continue
        row = rows.get(name)
        if isinstance(module, nn.Conv1d | nn.Conv2d) and module.groups == module.in_channels > 1:
            skipped[name] = 'a depthwise convolution, which has one filter per channel and no matrix between channels'
        elif row is None:
            skipped[name] = f'fewer than {MIN_EIGENVALUES} eigenvalues, or weightwatcher does not know the layer'
        elif not math.isfinite(row['alpha']) or row['alpha'] <= 0:
            skipped[name] = f'no power law could be fitted to its {int(row["num_evals"])} eigenvalues'
        else:
            numbers = float(row['alpha']), float(row['xmin']), float(row['D']), int(row['num_evals'])
            layers.append(Layer(name, group_of(model, name), *numbers))
    if not layers:
        raise ValueError(
            f'spectrum: {type(model).__name__} has no linear or convolutional layer with a fit; it needs weight '
            f'matrices with at least {MIN_EIGENVALUES} eigenvalues'
        )
    return Spectrum(layers, skipped)


def group_of(model: nn.Module, name: str) -> str:
    """The group of a layer: 'encoder', 'neck' or a task of our model, the first part of the name in another."""
    first, _, rest = name.partition('.')
    return rest.partition('.')[0] if isinstance(model, MultiTaskModel) and first == 'heads' else first


def weightwatcher_fit(model: nn.Module) -> list[dict[str, Any]]:
    """weightwatcher's table for a model, one dict for each layer; raises as :func:`import_weightwatcher`."""
    watcher = import_weightwatcher().WeightWatcher(model=model)
    # It prints 'SMALL N PL FIT' for a short tail; the number of eigenvalues is in the result.
    with contextlib.redirect_stdout(io.StringIO()):
        return watcher.analyze(min_evals=MIN_EIGENVALUES, plot=False).to_dict('records')


def import_weightwatcher() -> Any:
    """The package, without what its import does to logging: a handler at the root would print our log twice.

    Raises:
        ValueError: It is not installed; says how to install it.
    """
    root, own = logging.getLogger(), logging.getLogger('weightwatcher')
    handlers, level = list(root.handlers), root.level
    own.setLevel(logging.ERROR)  # it warns that there is no CUDA
    try:
        import weightwatcher
    except ImportError as error:
        raise ValueError(f'spectrum needs the package weightwatcher ({error}): {INSTALL}') from error
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    own.setLevel(logging.ERROR)
    return weightwatcher


def summarise(spectra: Mapping[str, Sequence[Spectrum]]) -> dict[str, dict[str, dict[str, float]]]:
    """Means over the runs of each label.

    Args:
        spectra: {label: one for each of its runs, for example of several seeds}.

    Returns:
        {label: {group: {'mean', 'std', 'runs'}}}; 'std' is the sample deviation over runs, NaN of one run.
    """
    result: dict[str, dict[str, dict[str, float]]] = {}
    for label, runs in spectra.items():
        groups: dict[str, list[float]] = {}
        for run in runs:
            for group, alpha in run.means().items():
                groups.setdefault(group, []).append(alpha)
        result[label] = {
            group: dict(
                mean=statistics.fmean(values),
                std=statistics.stdev(values) if len(values) > 1 else math.nan,
                runs=len(values),
            )
            for group, values in groups.items()
        }
    return result
