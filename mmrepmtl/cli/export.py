"""Writes a trained model as an ONNX file: all tasks as outputs named by task, for batches of any size.

The file is compared with PyTorch by onnxruntime and written only if all outputs agree. docs/deployment.md says what is
in it. Exit status: 0, or 1 with a message that says what is wrong.
"""

import argparse
import sys
from collections.abc import Sequence

from mmrepmtl.cli.arguments import add_checkpoint, add_model, add_size, add_trust
from mmrepmtl.deployment.check import BATCHES
from mmrepmtl.deployment.export import OnnxExport, export_onnx
from mmrepmtl.utils.command import in_one_line


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Reads ``argv``, or the arguments of the process; ``prog`` is the name of the command in messages."""
    parser = argparse.ArgumentParser(prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model(parser)
    add_checkpoint(parser)
    parser.add_argument('--out', help='the file to write (default: beside the checkpoint, with the ending .onnx)')
    add_size(parser)
    parser.add_argument('--opset', type=int, help="version of the ONNX operators (default: the exporter's)")
    parser.add_argument('--dynamic-size', action='store_true', help='leave height and width free, as the batch is')
    parser.add_argument(
        '--tolerance',
        type=float,
        default=1e-4,
        help="largest difference from PyTorch, as a fraction of the output's largest magnitude (default: 1e-4)",
    )
    add_trust(parser)
    return parser.parse_args(argv)


def show(export: OnnxExport) -> str:
    """Describes the written file, one fact a line."""
    height, width = export.size or ('height', 'width')
    sizes = ', '.join(f'{h} x {w}' for h, w in export.checked)
    lines = [
        f'{export.path}: {export.path.stat().st_size / 1e6:.1f} MB, opset {export.opset}, from {export.checkpoint}',
        f'input  images  (batch, 3, {height}, {width}) float32, RGB in [0, 1]',
    ]
    for task, about in export.tasks.items():
        found = export.differences[task]
        shape = ', '.join(map(str, export.shapes[task]))
        unit = f' in {about["unit"]}s' if about.get('unit') == 'metre' else ''
        lines.append(
            f'output {task}  ({shape}) {about["holds"]}{unit}; largest difference {found.absolute:.1e}, '
            f'{found.relative:.1e} of the largest value'
        )
    lines.append(f'compared with PyTorch at {sizes}, in batches of {" and ".join(map(str, BATCHES))}')
    return '\n'.join(lines)


@in_one_line
def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Runs the command; ``argv`` are its arguments, by default those of the process."""
    args = parse_args(argv, prog)
    # The exporter's own errors run to hundreds of lines and hang below ours, which says what matters.
    try:
        export = export_onnx(
            args.config_or_workdir,
            args.checkpoint,
            args.out,
            args.size,
            args.opset,
            args.dynamic_size,
            args.tolerance,
            args.trust_checkpoint,
        )
    except (ImportError, OSError, ValueError) as error:
        print(f'export: {error}; nothing was written', file=sys.stderr)
        return 1
    print(show(export))
    return 0
