"""Lists the methods that `--method` takes, with one line about each; those of a project's config where one is given."""

import argparse
from collections.abc import Sequence

from mmrepmtl.apis import describe_methods
from mmrepmtl.utils.command import in_one_line


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Reads ``argv``, or the arguments of the process; ``prog`` is the name of the command in messages."""
    parser = argparse.ArgumentParser(prog, description=__doc__)
    parser.add_argument('config', nargs='?', help='a config with a folder _base_/methods above it (default: ours)')
    return parser.parse_args(argv)


@in_one_line
def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Runs the command; ``argv`` are its arguments, by default those of the process."""
    methods = describe_methods(parse_args(argv, prog).config)
    width = max(map(len, methods), default=0)
    for name, line in methods.items():
        print(f'{name:{width}}  {line}'.rstrip())
