"""Serves a web page on this machine: pick or drop a picture, see all tasks' predictions and each task's saliency.

Without CONFIG_OR_WORKDIR it is the model of the quickstart, in work_dirs/quickstart.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from mmrepmtl.apis import MultiTaskInferencer
from mmrepmtl.cli.arguments import add_checkpoint, add_device, add_size, add_trust
from mmrepmtl.demo.page import serve

QUICKSTART = Path('work_dirs', 'quickstart')


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Reads ``argv``, or the arguments of the process; ``prog`` is the name of the command in messages."""
    parser = argparse.ArgumentParser(prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'config_or_workdir', nargs='?', help='a config file, or the work directory of a run (default: the quickstart)'
    )
    add_checkpoint(parser)
    parser.add_argument(
        '--host', default='127.0.0.1', help='address to listen on (default: 127.0.0.1, this machine only)'
    )
    parser.add_argument('--port', type=int, default=7860)
    add_device(parser)
    add_size(parser)
    add_trust(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None, prog: str | None = None, quickstart: Path = QUICKSTART) -> None:
    """Runs the command; ``argv`` are its arguments, ``quickstart`` is the work directory of the quickstart."""
    args = parse_args(argv, prog)
    if args.config_or_workdir is None and not (quickstart / 'last_checkpoint').is_file():
        sys.exit(
            f'{quickstart} holds no trained model: run `make quickstart` or `mmrepmtl quickstart` once (minutes), '
            'which makes it, or give CONFIG_OR_WORKDIR'
        )
    # As Ctrl-C, so that the uploaded pictures are removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        inferencer = MultiTaskInferencer(
            args.config_or_workdir or quickstart, args.checkpoint, args.device, args.trust_checkpoint, args.size
        )
        serve(inferencer, args.host, args.port)
    except (OSError, ValueError) as error:
        sys.exit(f'demo: {error}')
    except KeyboardInterrupt:
        pass  # Ctrl-C or kill: how a server is meant to end
