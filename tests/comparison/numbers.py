"""Rows of a comparison that never ran, drawn from a seeded generator."""

import random

from mmrepmtl.comparison.results_file import Row

#: {metric: (value of the single-task baseline, whether higher is better)}, in the range of NYUv2's.
METRICS = {
    'semseg/mIoU': (53.5, True),
    'semseg/pixAcc': (75.4, True),
    'depth/abs_err': (0.3926, False),
    'depth/rel_err': (0.1605, False),
    'depth/rmse': (0.55, False),
    'normal/mean': (21.99, False),
    'normal/median': (15.16, False),
    'normal/within_11.25': (39.04, True),
}
CONFIG = 'nyuv2/rep-mtl_resnet18-d16_conv_b8-20e_nyuv2-96x128'


def make_row(label, seed, metric, value, **changes) -> Row:
    fields = dict(
        label=label,
        method=label.partition(':')[0],
        seed=seed,
        split='test',
        metric=metric,
        value=value,
        higher_is_better=METRICS.get(metric, (0, True))[1],
        task=metric.rpartition('/')[0],
        selection='last checkpoint, no selection',
        config=CONFIG,
        config_hash='0123456789abcdef',
        commit='c0ffee',
        versions='{"torch": "2.14.1", "mmrepmtl": "1.0"}',
        step_seconds=0.1,
        peak_memory_mib=900.0,
        train_seconds=60.0,
        finished='2026-11-27T12:00:00',
        sweep='{}',
    )
    return Row(**fields | changes)


def make_rows(gains=None, seeds=(0, 1, 2), noise=0.01, constant=True, start=0) -> list[Row]:
    """Rows of several methods.

    Args:
        gains: {label: its mean relative gain in percent over the single-task baseline}.
        seeds: Seeds of each label.
        noise: Relative standard deviation of each number.
        constant: Whether there are rows of the best constants.
        start: Seed of the generator.
    """
    gains = gains or {'stl': 0, 'ew': -2, 'ew-log': 0, 'uw': -1.5, 'db-mtl': 1, 'cagrad': -0.5, 'rep-mtl': 1.5}
    draw = random.Random(start)
    rows = []
    if constant:
        rows += [
            make_row('constant', None, metric, base * (0.3 if up else 2.5), step_seconds=None, peak_memory_mib=None)
            for metric, (base, up) in METRICS.items()
        ]
    for number, (label, gain) in enumerate(gains.items()):
        for seed in seeds:
            for metric, (base, up) in METRICS.items():
                change = gain / 100 + draw.gauss(0, noise)
                value = base * (1 + change if up else 1 - change)
                rows.append(make_row(label, seed, metric, value, step_seconds=0.1 + 0.02 * number))
    return rows
