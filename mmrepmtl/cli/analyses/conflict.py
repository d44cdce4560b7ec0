"""Measures how far the tasks' gradients conflict: cosines and norms at Z, per batch and per sample, and at the
shared parameters.

BATCHES are indices of a split of the config's data set, such as val:0-63 or train:0,5,7; each is cut into batches of
--batch-size. All models see the same ones. With --course every checkpoint epoch_*.pth of the work directories is
measured and drawn over training.

    mmrepmtl analyse conflict rep-mtl=work_dirs/a ew=work_dirs/b --batches val:0-63 --batch-size 8
    mmrepmtl analyse conflict work_dirs/a --batches val:0-63 --course
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from mmengine.registry import init_default_scope

from mmrepmtl.analysis.conflict import Conflict, conflict
from mmrepmtl.analysis.conflict_figure import conflict_figure, course_figure
from mmrepmtl.analysis.figures import check_figure_format, write_figure, write_numbers
from mmrepmtl.analysis.saliency_maps import SaliencySettings
from mmrepmtl.cli.analyses.batches import read_batches
from mmrepmtl.cli.analyses.runs import Trained, add_run_arguments, find_trained, moment_of
from mmrepmtl.utils.folders import check_writable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    add_run_arguments(parser, 'conflict.png')
    parser.add_argument(
        '--batches', nargs='+', required=True, metavar='SPLIT:INDICES', help='for example val:0-63 or train:0,5,7'
    )
    parser.add_argument('--batch-size', type=int, default=8, help='images of a batch (default: 8)')
    parser.add_argument('--course', action='store_true', help='all checkpoints of a work directory, over training')
    parser.add_argument(
        '--train-mode',
        action='store_true',
        help="BatchNorm with the batch's statistics, and dropout, as in training (default: evaluation mode)",
    )
    parser.add_argument('--data-root', help='folder of the data set')


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    check_figure_format(args.out)
    check_writable(Path(args.out).parent)
    models = find_trained(args, every=args.course)
    cfg = models[0].config
    init_default_scope(cfg.get('default_scope', 'mmrepmtl'))
    batches = read_batches(cfg, args.batches, args.batch_size, args.data_root)
    results: list[tuple[Trained, Conflict]] = []
    for trained in models:
        shared = SaliencySettings.of(trained.config).shared
        found = conflict(trained.load(args), batches, shared, args.train_mode)
        if results and found.tasks != results[0][1].tasks:
            raise ValueError(f'{trained.checkpoint}: its tasks are {found.tasks}, those before {results[0][1].tasks}')
        results.append((trained, found))
        print(f'{trained.label}: {trained.checkpoint}', flush=True)
        print_conflict(found)
    mode = 'training mode' if args.train_mode else 'evaluation mode'
    note = f'gradients of the losses (no log, no weights) on {" ".join(args.batches)}, {mode}'
    write_figure(draw(results, args.course, note), args.out)
    details = [trained.facts() | numbers_of(found) for trained, found in results]
    numbers = dict(batches=args.batches, batch_size=args.batch_size, mode=mode, models=details)
    print(f'conflict: {args.out}, {write_numbers(args.out, numbers)}')


def draw(results: Sequence[tuple[Trained, Conflict]], course: bool, note: str) -> Figure:
    """The figure of all models: side by side, or over training."""
    if not course:
        titled: dict[str, Conflict] = {}
        for trained, found in results:
            label = trained.label
            if label in titled:
                label = f'{label} ({trained.checkpoint.parent.name}/{trained.checkpoint.stem})'
            titled[label] = found
        return conflict_figure(titled, note)
    groups: dict[str, list[tuple[int, Conflict]]] = {}
    for trained, found in results:
        groups.setdefault(trained.label, []).append((moment_of(trained.checkpoint), found))
    kind = results[0][0].checkpoint.stem.partition('_')[0]
    return course_figure(groups, dict(epoch='epoch', iter='iteration')[kind])


def numbers_of(found: Conflict) -> dict[str, Any]:
    """A conflict as data for JSON."""
    names = dict(
        cosine_z='z_TT',
        cosine_z_samples='samples_TT',
        negative_samples='negative_TT',
        cosine_parameters='parameters_TT',
        norm_z='z_norm_T',
        norm_parameters='parameters_norm_T',
        losses='losses_T',
    )
    values = {name: getattr(found, field) for name, field in names.items()}
    return dict(tasks=list(found.tasks), batches=found.batches, samples=found.samples) | {
        name: None if value is None else value.tolist() for name, value in values.items()
    }


def print_conflict(found: Conflict) -> None:
    """Prints the cosines of each pair of tasks and the norms of each."""
    for i, one in enumerate(found.tasks):
        for j in range(i + 1, len(found.tasks)):
            line = f'  {one} / {found.tasks[j]}: '
            if float(found.parameters_norm_T[[i, j]].min()) == 0:
                print(f'{line}one of them has no gradient on these images')
                continue
            if found.z_TT is not None and found.samples_TT is not None and found.negative_TT is not None:
                line += (
                    f'at Z {found.z_TT[i, j]:+.3f} (batch), {found.samples_TT[i, j]:+.3f} (samples, '
                    f'{100 * found.negative_TT[i, j]:.0f} % negative), '
                )
            print(f'{line}at the parameters {found.parameters_TT[i, j]:+.3f}')
    for t, task in enumerate(found.tasks):
        at_z = '' if found.z_norm_T is None else f'at Z {found.z_norm_T[t]:.3g}, '
        print(f'  |gradient| of {task}: {at_z}at the parameters {found.parameters_norm_T[t]:.3g}')
