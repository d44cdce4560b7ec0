"""A folder of a comparison: random models in place of trained ones, and logs written by a formula."""

import json
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmrepmtl.apis import load_config
from mmrepmtl.apis.train import single_task_config
from mmrepmtl.comparison.report.history import run_folder
from mmrepmtl.comparison.results_file import write_results
from mmrepmtl.evaluation import save_results
from mmrepmtl.registry import MODELS
from tests.comparison.numbers import make_rows

TINY = Path(__file__).parents[1] / 'tools/tiny.py'
TASKS = ('semseg', 'depth', 'normal')
LABELS = ('stl', 'ew', 'ew-log', 'rep-mtl')


def train_line(label: str, seed: int, step: int) -> dict[str, float]:
    """The line of the log about one iteration."""
    shift = 1 + LABELS.index(label) + 10 * seed
    line = dict(lr=0.001, time=0.1, data_time=0.01, loss=3.0, epoch=1 + step // 10, iter=step, step=step)
    if label == 'stl':
        return line
    line |= {f'raw/{task}': shift / step + number for number, task in enumerate(TASKS)}
    line |= {f'task_gradients/norm/{task}': 0.1 * shift + 0.01 * step for task in TASKS}
    line |= {
        'task_gradients/cos/semseg-depth': 0.01 * step * seed,
        'task_gradients/cos/semseg-normal': 0.4 / step - 0.2,
    }
    if label == 'rep-mtl':
        line |= {
            'rep_mtl/tsr': 0.9 - 0.01 * step,
            'rep_mtl/csa': 1.1 + seed - 0.01 * step,
            'rep_mtl/grad_ratio': 0.05 * step,
        }
        line |= {f'rep_mtl/share/{task}': 1 / 3 for task in TASKS}
    return line


def write_log(folder: Path, lines: list, name: str = '20261127_120000') -> None:
    file = folder / name / 'vis_data/scalars.json'
    file.parent.mkdir(parents=True)
    file.write_text(''.join((line if isinstance(line, str) else json.dumps(line)) + '\n' for line in lines))


def write_model(cfg: Config, folder: Path, seed: int) -> None:
    """The config of a run, a checkpoint with random weights, and the results of its test."""
    folder.mkdir(parents=True, exist_ok=True)
    cfg.work_dir = str(folder)
    cfg.dump(folder / 'tiny.py')
    init_default_scope('mmrepmtl')
    torch.manual_seed(seed)
    model = MODELS.build(cfg.model)
    checkpoint = folder / 'epoch_2.pth'
    torch.save(dict(state_dict=model.state_dict(), meta=dict(epoch=2)), checkpoint)
    save_results(folder / 'test_metrics.json', {'semseg/mIoU': 1.0}, dict(checkpoint=str(checkpoint)))


def make_folder(work_dir: Path, seeds=(0, 1)) -> list:
    """Fills the folder; returns its rows."""
    rows = make_rows(dict(zip(LABELS, (0, -2, 0, 1), strict=True)), seeds=seeds)
    write_results(work_dir / 'results.csv', rows)
    (work_dir / 'comparison.json').write_text(json.dumps(dict(methods=[*LABELS, 'famo'], seeds=list(seeds))))
    for label in LABELS:
        for seed in seeds:
            folder = run_folder(work_dir, label, seed)
            cfg = load_config(str(TINY), method=label if label != 'stl' else 'ew', work_dir=str(folder))
            lines = [train_line(label, seed, step) for step in range(1, 21)]
            lines += [
                {'semseg/mIoU': 10.0 * epoch + seed, 'data_time': 0.1, 'time': 0.1, 'step': epoch} for epoch in (1, 2)
            ]
            if label != 'stl':
                write_log(folder, lines)
                write_model(cfg, folder, seed)
                continue
            for task in TASKS:
                alone = single_task_config(cfg, task)
                write_log(folder / task, lines)
                write_model(alone, folder / task, seed)
    return rows
