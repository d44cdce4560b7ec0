"""Arguments that several commands have, each described once."""

import argparse
import os
from collections.abc import Callable, Sequence
from typing import Any

from mmengine.config import DictAction


def add_config(parser: argparse.ArgumentParser) -> None:
    """Adds CONFIG."""
    parser.add_argument('config', help='a config file, or the name of one of this package (FOLDER/NAME)')


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds CONFIG_OR_WORKDIR."""
    parser.add_argument('config_or_workdir', help='a config file, or the work directory of a run')


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Adds ``--checkpoint``, for commands that find it in a work directory otherwise."""
    parser.add_argument('--checkpoint', help='the file (default: the last one of the work directory)')


def add_trust(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """Adds ``--trust-checkpoint``; ``several``: the command may read more than one."""
    what = 'checkpoints that hold' if several else 'a checkpoint that holds'
    parser.add_argument('--trust-checkpoint', action='store_true', help=f'load {what} more than data')


def add_work_dir(parser: argparse.ArgumentParser, use: str) -> None:
    """Adds ``--work-dir``, with its use in the command."""
    parser.add_argument('--work-dir', help=f'{use} (default: work_dirs/CONFIG)')


def add_size(parser: argparse.ArgumentParser) -> None:
    """Adds ``--size H W``."""
    parser.add_argument(
        '--size', type=int, nargs=2, metavar=('H', 'W'), help='size of the network input, instead of the config'
    )


def add_device(parser: argparse.ArgumentParser, type: Callable[[str], Any] = str) -> None:
    """Adds ``--device``; ``type`` converts its text."""
    parser.add_argument('--device', type=type, help='for example cuda:0 or cpu (default: a GPU where there is one)')


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Adds ``--data-root`` and ``--cfg-options``, which change what a config says."""
    parser.add_argument('--data-root', help='folder of the data set')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='key=value pairs that override the config')


def add_launcher(parser: argparse.ArgumentParser) -> None:
    """Adds ``--launcher`` and ``--local_rank``; such a parser is read by :func:`parse_launched`."""
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def parse_launched(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the arguments of one of several processes, whose rank on its machine mmengine reads from LOCAL_RANK."""
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args
