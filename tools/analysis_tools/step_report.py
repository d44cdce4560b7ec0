"""The report of ``benchmark_step.py``: ratios and the table."""

import argparse
import os
import platform
import statistics
from collections.abc import Sequence

import torch
from step_contestants import AUTOJAC, NUM_TASKS, PLAIN, REFERENCE, Contestant, Memory

PASSES = ('encoder', 'heads')


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Median and the two quartiles."""
    first, median, third = statistics.quantiles(values, n=4, method='inclusive')
    return dict(q1=first, median=median, q3=third)


def evaluate(groups: Sequence[dict[str, Contestant]], shared_bytes: int) -> dict[str, dict]:
    """Times, ratios (median and quartiles over rounds), counted cost and memory of each method.

    Args:
        groups: The contestants that ran together, each group with 'encoder', 'heads' and ew.
        shared_bytes: Of one gradient of the shared parameters.
    """
    usual = {key: statistics.median(s for group in groups for s in group[key].seconds) for key in PASSES}
    series: dict[str, dict[str, list[float]]] = {}
    rows: dict[str, dict] = {}
    for group in groups:
        ew = group[REFERENCE]
        for name, contestant in group.items():
            if contestant.counted is None:
                continue
            heads, encoder = contestant.counted
            passes = zip(group['heads'].seconds, group['encoder'].seconds, strict=True)
            found = dict(
                times=contestant.seconds,
                to_ew=_ratios(contestant, ew),
                to_counted_by_f=[
                    mine / (heads * h + encoder * e) for mine, (h, e) in zip(contestant.seconds, passes, strict=True)
                ],
            )
            for other, key in ((PLAIN, 'to_plain'), (AUTOJAC + name, 'to_autojac')):
                if other in group:
                    found[key] = _ratios(contestant, group[other])
            for key, values in found.items():
                series.setdefault(name, {}).setdefault(key, []).extend(values)
            costs = [f_h * usual['heads'] + f_e * usual['encoder'] for f_h, f_e in (contestant.counted, ew.counted)]
            row = rows.setdefault(name, {})
            row |= dict(counted_cost=f'{heads} F_h + {encoder} F_e', counted_to_ew=costs[0] / costs[1])
            row |= _memory_row(contestant.memory, ew.memory, shared_bytes)
            if PLAIN in group:
                row['least_to_plain'] = min(contestant.seconds) / min(group[PLAIN].seconds)
            if AUTOJAC + name in group:
                row['memory_to_autojac'] = contestant.memory.total / group[AUTOJAC + name].memory.total
            if contestant.note:
                row['note'] = contestant.note
    for name, row in rows.items():
        times = series[name].pop('times')
        row |= dict(median_ms=1000 * statistics.median(times), least_ms=1000 * min(times))
        row |= {key: quartiles(values) for key, values in series[name].items()}
        row['to_counted_by_ew'] = {key: value / row['counted_to_ew'] for key, value in row['to_ew'].items()}
    return rows


def _ratios(one: Contestant, other: Contestant) -> list[float]:
    return [mine / theirs for mine, theirs in zip(one.seconds, other.seconds, strict=True)]


def _memory_row(memory: Memory, ew: Memory, shared_bytes: int) -> dict[str, float]:
    return dict(
        peak_mib=memory.peak / 2**20,
        kept_mib=memory.kept / 2**20,
        peak_to_ew=memory.peak / ew.peak,
        memory_to_ew=memory.total / ew.total,
        kept_copies=memory.kept / shared_bytes,
        copies=(memory.total - ew.total) / shared_bytes,
    )


def describe(args: argparse.Namespace, shared_parameters: int) -> dict:
    """Describes what was measured, and on what."""
    device = torch.cuda.get_device_name() if torch.device(args.device).type == 'cuda' else platform.processor() or 'CPU'
    return dict(
        model=args.model,
        size=list(args.size),
        batch=args.batch,
        heads=args.heads,
        tasks=NUM_TASKS,
        output_stride=args.output_stride,
        shared_parameters=shared_parameters,
        precision=args.precision,
        device=args.device,
        device_name=device,
        clock=args.clock,
        threads=torch.get_num_threads(),
        cores=os.cpu_count(),
        rounds=args.rounds,
        group=args.group,
        autojac=args.autojac,
        torch=torch.__version__,
        load_average=list(os.getloadavg()) if hasattr(os, 'getloadavg') else None,
    )


def make_report(groups: Sequence[dict[str, Contestant]], setup: dict, without_autojac: dict[str, str]) -> dict:
    """Everything that was measured, as it goes to the file.

    Args:
        groups: As in :func:`evaluate`.
        setup: What :func:`describe` says.
        without_autojac: Why methods that torchjd knows were not compared with it.
    """

    def forward_ms(groups: Sequence[dict[str, Contestant]]) -> dict[str, dict[str, float]]:
        return {key: quartiles([1000 * s for group in groups for s in group[key].seconds]) for key in PASSES}

    return dict(
        setup=setup,
        forward_ms=forward_ms(groups),
        methods=evaluate(groups, 4 * setup['shared_parameters']),
        without_autojac=without_autojac,
        groups=[
            dict(
                methods=[name for name in group if name not in PASSES],
                ew_median_ms=1000 * statistics.median(group[REFERENCE].seconds),
                forward_ms=forward_ms([group]),
            )
            for group in groups
        ],
    )


def print_report(report: dict) -> None:
    """Prints the setting, the forward passes, the table and what it leaves out."""
    setup, rows = report['setup'], report['methods']
    load = ', '.join(f'{value:.1f}' for value in setup['load_average'] or []) or 'unknown'
    print(
        '{model}, stride {output_stride}, {tasks} {heads} heads, batch {batch} of {size[0]} x {size[1]}, {precision}, '
        'torch {torch}\n{device} ({device_name}), {threads} threads on {cores} cores, {clock} clock, '
        '{rounds} interleaved rounds in groups of {group}'.format_map(setup)
        + f', load average at the end {load}\n'
    )
    print('median [quartiles]')
    for key, name in (('encoder', 'F_e'), ('heads', 'F_h')):
        times = report['forward_ms'][key]
        print(f'{name}  forward of the {key:7}  {times["median"]:8.1f} ms [{times["q1"]:.1f}, {times["q3"]:.1f}]')
    width = max(map(len, [*rows, 'method']))
    print(
        f'\n{"method":{width}} | {"ms":>8} | {"x ew":>17} | {"counted cost":>16} {"x ew":>5} | '
        f'{"x counted (by ew)":>17} | {"peak MiB":>8} {"kept":>7} | {"memory x ew":>11} | {"copies (kept)":>13} | '
        f'{"time / autojac":>17} {"memory":>6}'
    )
    for name, row in rows.items():
        autojac = f'{"-":>17} {"-":>6}'
        if 'to_autojac' in row:
            autojac = f'{_spread(row["to_autojac"]):>17} {row["memory_to_autojac"]:6.2f}'
        print(
            f'{name:{width}} | {row["median_ms"]:8.1f} | {_spread(row["to_ew"]):>17} | {row["counted_cost"]:>16} '
            f'{row["counted_to_ew"]:5.2f} | {_spread(row["to_counted_by_ew"]):>17} | {row["peak_mib"]:8.1f} '
            f'{row["kept_mib"]:7.1f} | {row["memory_to_ew"]:11.2f} | {row["copies"]:6.2f} ({row["kept_copies"]:4.2f})'
            f' | {autojac}'
        )
    print(
        '\nx counted (by ew) = step / (step of ew in the same round * counted cost / counted cost of ew)\n'
        'peak: the most that a step holds beyond what was held before it\n'
        "kept: what is held between steps beside the model and the optimizer's state; memory = peak + kept\n"
        "copies: memory beyond ew's (kept alone) / the {:.1f} MiB of one gradient of the shared parameters\n"
        "/ autojac: this method over torchjd's own step in the same round".format(
            4 * setup['shared_parameters'] / 2**20
        )
    )
    for name, row in rows.items():
        if 'note' in row:
            print(f'{name}: {row["note"]}')
    for name, reason in report['without_autojac'].items():
        print(f'{AUTOJAC}{name} is not available: {reason}')
    if PLAIN in rows:
        percent = {key: 100 * (value - 1) for key, value in rows[REFERENCE]['to_plain'].items()}
        least = 100 * (rows[REFERENCE]['least_to_plain'] - 1)
        print(
            "{} over mmengine's OptimWrapper: {median:+.1f} % [{q1:+.1f}, {q3:+.1f}]".format(REFERENCE, **percent)
            + f', least step over least step {least:+.1f} %'
        )


def _spread(values: dict[str, float]) -> str:
    return f'{values["median"]:.2f} [{values["q1"]:.2f}, {values["q3"]:.2f}]'
