"""Converters run in this process."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / 'tools' / 'dataset_converters'


def tool(name):
    spec = importlib.util.spec_from_file_location(f'convert_{name}', TOOLS / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def convert(name, src, dst, *options, partial=True, size='16x32'):
    """Exit status of a converter in this process."""
    options = [*options, '--allow-partial'] if partial else [*options]
    return tool(name).main([str(src), str(dst), '--workers', '0', '--size', size, *options])
