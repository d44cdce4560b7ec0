"""Runs commands in this process, and gives configs that say one thing in many ways."""

import itertools
from pathlib import Path

from mmrepmtl.cli import browse, check, export, infer, saliency, test, train

COMMANDS = dict(browse=browse, check=check, export=export, infer=infer, saliency=saliency, test=test, train=train)
TOOLS = Path(__file__).parents[1] / 'tools'
CLASSES = TOOLS / 'classes.py'
TINY = TOOLS / 'tiny.py'
# A training of one step.
SHORT = {'train_cfg.max_epochs': 1, 'train_dataloader.dataset.num_samples': 4}
METRICS = {'semseg/mIoU', 'depth/abs_err', 'normal/mean'}
_numbers = itertools.count()


def run(command: str, *arguments, options: dict | None = None) -> int:
    """Runs ``mmrepmtl COMMAND`` with ``--cfg-options``; returns its exit status."""
    parts = [str(part) for part in arguments]
    if options is not None:
        # mmengine keeps loggers by the name of the experiment.
        settings = options | dict(experiment_name=f'{command}_{next(_numbers)}')
        parts += ['--cfg-options', *(f'{key}={value}' for key, value in settings.items())]
    return COMMANDS[command].main(parts) or 0


def variant(base: Path, folder: Path, text: str) -> Path:
    """A config in ``folder`` that is the file ``base`` with more lines."""
    file = folder / 'variant.py'
    file.write_text(base.read_text() + '\n' + text)
    return file


def inherited(folder: Path, text: str) -> Path:
    """A pure-Python config in ``folder`` that is classes.py with more lines."""
    file = folder / 'inherited.py'
    base = 'with read_base():\n    from tests.tools.classes import *'
    file.write_text(f'from mmengine.config import read_base\n\n{base}\n\n{text}\n')
    return file
