"""The trained models that an analysis is given on the command line."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config
from torch import nn

from mmrepmtl.apis.loading import find_run, load_model
from mmrepmtl.comparison.results_file import STL
from mmrepmtl.utils.device import device_argument

RUN_HELP = (
    'LABEL=WORK_DIR, LABEL=CHECKPOINT (in its work directory), or the same without a label; or the folder of an '
    '`mmrepmtl compare`, which stands for all its runs. Runs of one label are averaged'
)


class Trained(NamedTuple):
    """A trained model: the label of its method, the config that it ran with, and its checkpoint."""

    label: str
    config: Config
    checkpoint: Path

    def load(self, args: argparse.Namespace) -> nn.Module:
        """Builds it with its weights, for evaluation, on the device of the command line."""
        return load_model(self.config, self.checkpoint, args.device, args.trust_checkpoint)[0]

    def facts(self) -> dict[str, Any]:
        """Its label and file, for the JSON beside a figure."""
        return dict(label=self.label, checkpoint=str(self.checkpoint))


def add_run_arguments(parser: argparse.ArgumentParser, default: str) -> None:
    """Adds the arguments by which models are given and the figure is named."""
    parser.add_argument('runs', nargs='+', metavar='RUN', help=RUN_HELP)
    parser.add_argument('--config', help='the config, where the folder of a checkpoint holds none')
    parser.add_argument('--trust-checkpoint', action='store_true', help='load checkpoints that hold more than data')
    parser.add_argument(
        '--device', type=device_argument, help='for example cuda:0 or cpu (default: a GPU where there is one)'
    )
    add_out_argument(parser, default)


def add_out_argument(parser: argparse.ArgumentParser, default: str) -> None:
    """Adds the name of the figure; the numbers go beside it."""
    parser.add_argument(
        '--out', default=default, help=f'the figure: .png, .jpg, .pdf or .svg (default: {default}); .json beside it'
    )


def find_trained(args: argparse.Namespace, every: bool = False, single: bool = False) -> list[Trained]:
    """The models of the command line, in its order.

    Args:
        args: With ``runs``, ``config`` and ``trust_checkpoint``.
        every: Take all checkpoints of a work directory in the order of training, instead of the last.
        single: Take the single-task models of a comparison too.

    Raises:
        FileNotFoundError: There is no such folder or checkpoint.
        ValueError: A comparison without runs, or a config that is not clear; says what to give.
    """
    found = []
    for text in args.runs:
        label, path = _split_label(text)
        if (path / 'runs').is_dir():
            folders = comparison_runs(path, single)
            if not folders:
                raise ValueError(f'{path}: this comparison has no run with a checkpoint yet')
            for own, folder in folders:
                found += _of_folder(label or own, folder, args, every)
        else:
            found += _of_folder(label, path, args, every)
    return found


def _split_label(text: str) -> tuple[str | None, Path]:
    """LABEL=PATH; a path that is there and has a '=' in it, such as that of a sweep's run, is no label."""
    label, sign, path = text.partition('=')
    if not sign or Path(text).exists():
        return None, Path(text)
    return label, Path(path)


def comparison_runs(folder: Path, single: bool) -> list[tuple[str, Path]]:
    """(label, folder of the run) of each run of a comparison that has a checkpoint, by label and seed.

    The models of the single-task baseline, one for each task, have labels of the form 'stl:TASK'.
    """
    found = [(path.parent.name, moment_of(path), path) for path in folder.glob('runs/*/seed_*')]
    if single:
        tasks = folder.glob(f'runs/{STL}/seed_*/*')
        found += [(f'{STL}:{path.name}', moment_of(path.parent), path) for path in tasks]
    return [(label, path) for label, _, path in sorted(found) if any(path.glob('*.pth'))]


def _of_folder(label: str | None, path: Path, args: argparse.Namespace, every: bool) -> list[Trained]:
    if path.is_file():
        config, checkpoint = find_run(args.config or path.parent, path, args.trust_checkpoint)
        return [Trained(label or path.parent.name, config, checkpoint)]
    if not path.is_dir():
        raise FileNotFoundError(f'there is no work directory or checkpoint {path}')
    label = label or path.resolve().name
    if every:
        files = checkpoints_in_order(path)
        if not files:
            raise FileNotFoundError(f'{path}: there is no checkpoint epoch_*.pth or iter_*.pth in this work directory')
        config = find_run(args.config or path, files[0], args.trust_checkpoint)[0]
        return [Trained(label, config, file) for file in files]
    config, checkpoint = find_run(path, None, args.trust_checkpoint)
    return [Trained(label, find_run(args.config, checkpoint)[0] if args.config else config, checkpoint)]


def checkpoints_in_order(folder: Path) -> list[Path]:
    """The checkpoints ``epoch_*.pth``, else ``iter_*.pth``, of a work directory, in the order of training."""
    for kind in ('epoch', 'iter'):
        files = [path for path in folder.glob(f'{kind}_*.pth') if re.fullmatch(rf'{kind}_\d+', path.stem)]
        if files:
            return sorted(files, key=moment_of)
    return []


def moment_of(path: Path) -> int:
    """The number at the end of a name: the epoch or iteration of a checkpoint, the seed of a run; 0 without."""
    digits = re.search(r'(\d+)$', path.stem)
    return int(digits[1]) if digits else 0


def by_label(runs: Sequence[Trained]) -> dict[str, list[Trained]]:
    """{label: its models}, in the order of the first of each label."""
    groups: dict[str, list[Trained]] = {}
    for run in runs:
        groups.setdefault(run.label, []).append(run)
    return groups
