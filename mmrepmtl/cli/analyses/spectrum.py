"""Fits power laws to the spectra of all layers (weightwatcher, extra `analysis`) and draws their exponents.

mmrepmtl analyse spectrum rep-mtl=work_dirs/a ew=work_dirs/b --out spectrum.png
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmrepmtl.analysis.figures import check_figure_format, write_figure, write_numbers
from mmrepmtl.analysis.spectrum import MIN_EIGENVALUES, Spectrum, import_weightwatcher, spectrum, summarise
from mmrepmtl.analysis.spectrum_figure import spectrum_figure
from mmrepmtl.cli.analyses.runs import Trained, add_run_arguments, find_trained
from mmrepmtl.utils.folders import check_writable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    add_run_arguments(parser, 'spectrum.png')


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    check_figure_format(args.out)
    check_writable(Path(args.out).parent)
    import_weightwatcher()  # before models are loaded for nothing
    spectra: dict[str, list[Spectrum]] = {}
    details = []
    for trained in find_trained(args, single=True):
        found = spectrum(trained.load(args))
        spectra.setdefault(trained.label, []).append(found)
        details.append(_details(trained, found))
        print(f'{trained.label}: {trained.checkpoint}, {len(found.layers)} layers', flush=True)
    means = summarise(spectra)
    _print_table(means)
    write_figure(spectrum_figure(spectra), args.out)
    numbers = dict(min_eigenvalues=MIN_EIGENVALUES, means=means, runs=details)
    print(f'spectrum: {args.out}, {write_numbers(args.out, numbers)}')


def _details(trained: Trained, found: Spectrum) -> dict[str, Any]:
    return trained.facts() | dict(layers=[asdict(layer) for layer in found.layers], skipped=found.skipped)


def _print_table(means: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    groups: Sequence[str] = list(dict.fromkeys(group for own in means.values() for group in own))
    width = max(len('mean alpha'), *map(len, means))
    print(f'{"mean alpha":{width}}  ' + '  '.join(f'{group:>14}' for group in groups))
    for label, own in means.items():
        print(f'{label:{width}}  ' + '  '.join(f'{_cell(own.get(group)):>14}' for group in groups))


def _cell(value: Mapping[str, float] | None) -> str:
    if value is None:
        return '-'
    return f'{value["mean"]:.2f}' + (f' ± {value["std"]:.2f}' if value['runs'] > 1 else '')
