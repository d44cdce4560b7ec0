"""Measures the training step of multi-task methods side by side, on one model and one batch of random data.

Every method has its own copy of the same initial model and its own Adam. In each round every method takes one step, and
the two forward passes that the counted costs are made of are measured too; the order rotates from round to round, so
that drift and other users of the machine hit all alike. Ratios are made within a round; shown are median and quartiles.
No more than `--group` models are held at once beside that of ew, which every group has its own of.

The counted cost is in units of F_e and F_h, the forward passes of the encoder and of all heads with their losses:

    plain, loss weighting, gradients combined at the representation    3 F_h + 3 F_e
    gradients combined at the parameters, T tasks                      3 F_h + (1 + 2 T) F_e
    Rep-MTL                                                            3 F_h more
    Rep-MTL with an aggregator: its penalty has its own backward       5 F_h + 2 F_e more
    Rep-MTL through='representation', without or with an aggregator    4 F_h, or 4 F_h + 2 F_e more
    a second look at the losses after the step (famo)                  F_h + F_e more
    n micro-batches per step (sdmgrad: 3)                              n times all that

`x counted (by ew)` is the step over (ew's measured step times the ratio of the two counted costs): what a method costs
beyond its arithmetic, with the optimizer and the rest of a step in both. `x counted (by F)`, in the file of `--json`,
is the step over the counted cost with the measured F_e and F_h put in: not 1 for ew either, since a backward is not
exactly two forwards. Methods that average over epochs get epochs of 2 steps. What a method does every so many steps
(igbv2's agent learns in every 50th) is in no median.

Memory is that of tensors, in bytes asked of torch's allocators, in the first two steps, which are not timed:

    kept    what the first step leaves behind, less the optimizer's state: buffers and state of the method
    peak    the most that the second step holds beyond what was held before it: activations, gradients
    memory  both together; `copies` is what it is beyond ew's, in units of one gradient of the shared parameters

The state that MTAdam has in place of Adam's is its own and counts as kept.

`--autojac` adds, for the methods that torchjd has an aggregator for, the same step on the same model by torchjd's
mtl_backward, that aggregator, and the same Adam, with torchjd's defaults; `--autojac lean` takes its options for less
memory instead (rows one by one, and no concatenated Jacobian where the Gramian is enough). A method that is at the
representation is compared at the parameters, where autojac is, as NAME@parameter.

    python tools/analysis_tools/benchmark_step.py --methods plain ew ew-log rep-mtl pcgrad
    python tools/analysis_tools/benchmark_step.py --methods all --autojac --json steps.json

On a machine that others use, `--clock process --threads 1` counts the seconds that this process computed.
"""

import argparse
import copy
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from step_contestants import (
    AUTOJAC,
    DECODERS,
    DTYPES,
    NUM_TASKS,
    PLAIN,
    REFERENCE,
    Contestant,
    Memory,
    NoPartner,
    build_model,
    forward_passes,
    make_autojac,
    make_batch,
    make_contestant,
    overlays,
    partner_of,
)
from step_report import describe, make_report, print_report
from torch.profiler import ProfilerActivity, profile, record_function

from mmrepmtl.utils.device import device_argument
from mmrepmtl.utils.files import whole_file

TRIES = 40  # steps to find the scale of fp16


# ---- what runs together ----


def plan(methods: Sequence[str], autojac: bool, size: int) -> tuple[list[list[str]], dict[str, str]]:
    """Who is measured together.

    Args:
        methods: As on the command line, ``'all'`` replaced.
        autojac: Whether torchjd's steps are wanted.
        size: The most contestants beside ew in one group; a method and its partner stay together.

    Returns:
        The groups, each with ew first; and why methods that torchjd knows have no partner.
    """
    units, reasons = [], {}
    for method in dict.fromkeys(methods):
        if method == REFERENCE:
            continue
        units.append([method])
        try:
            if autojac and partner_of(method, NUM_TASKS) is not None:
                units[-1].append(AUTOJAC + method)
        except NoPartner as reason:
            reasons[method] = str(reason)
    groups = [[REFERENCE]]
    for unit in units:
        if len(groups[-1]) > 1 and len(groups[-1]) - 1 + len(unit) > size:
            groups.append([REFERENCE])
        groups[-1] += unit
    return groups, reasons


def expand(methods: Sequence[str], autojac: bool) -> list[str]:
    """Replaces ``'all'``; with autojac, adds NAME@parameter where only that has a partner."""
    expanded = []
    for method in [name for given in methods for name in (overlays() if given == 'all' else [given])]:
        expanded.append(method)
        if autojac and '@' not in method and _partner(method) is False and _partner(f'{method}@parameter'):
            expanded.append(f'{method}@parameter')
    return list(dict.fromkeys([*expanded, REFERENCE]))


def _partner(method: str) -> bool | None:
    """Whether torchjd can make the step; None where it has no such aggregator."""
    try:
        return True if partner_of(method, NUM_TASKS) is not None else None
    except NoPartner:
        return False


def run_group(names: Sequence[str], args: argparse.Namespace) -> dict[str, Contestant]:
    """Builds and measures the contestants of a group and frees their models; 'encoder' and 'heads' are the passes."""
    initial = build_model(args.model, args.heads, args.output_stride, args.device)
    data = make_batch(args.batch, args.size, args.device)
    passes = forward_passes(copy.deepcopy(initial), data, args.precision)
    contestants = {name: Contestant(run) for name, run in passes.items()}
    if torch.device(args.device).type == 'cuda':
        # cuBLAS and others allocate workspaces in the first step of a process, which are no method's.
        make_contestant(REFERENCE, copy.deepcopy(initial), data, args.precision).run()
    for name in names:
        model = copy.deepcopy(initial)
        if name.startswith(AUTOJAC):
            lean = args.autojac == 'lean'
            contestant = make_autojac(name.removeprefix(AUTOJAC), model, data, args.precision, lean)
        else:
            contestant = make_contestant(name, model, data, args.precision)
        contestant.memory = measure_memory(contestant, args.device)
        contestants[name] = contestant
    measure(contestants, args.rounds, args.warmup, args.device, args.clock)
    for contestant in contestants.values():
        contestant.run = contestant.optimizer = None
    return contestants


# ---- memory ----


def measure_memory(contestant: Contestant, device: str) -> Memory:
    """Makes the first two steps of a contestant and measures their memory.

    Raises:
        RuntimeError: The optimizer makes no step.
    """
    step, optimizer = contestant.run, contestant.optimizer

    def first_step() -> None:
        for _ in range(TRIES):  # fp16's scaler skips steps until it has found its scale
            step()
            if optimizer.state:
                return
        raise RuntimeError(f'benchmark_step: the optimizer made no step in {TRIES} tries; use another --precision')

    gc.collect()
    cuda = torch.device(device).type == 'cuda'
    left, peak = _cuda_memory(first_step, step, device) if cuda else cpu_memory(first_step, step)
    state = [value for values in optimizer.state.values() for value in values.values()]
    # Adam counts its steps on the CPU.
    state = [value for value in state if torch.is_tensor(value) and value.is_cuda == cuda]
    return Memory(peak, left - sum(value.numel() * value.element_size() for value in state))


def _cuda_memory(first: Callable[[], object], second: Callable[[], object], device: str) -> tuple[int, int]:
    """As :func:`cpu_memory`, on a GPU."""
    before = torch.cuda.memory_allocated(device)
    first()
    held = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    second()
    return held - before, torch.cuda.max_memory_allocated(device) - held


def cpu_memory(first: Callable[[], object], second: Callable[[], object]) -> tuple[int, int]:
    """Bytes that the first call leaves allocated, and the most that the second holds beyond what it began with.

    torch has no counters for the CPU, but its profiler sees every allocation and release of its CPU allocator, with the
    running total. The peak of the totals is exact also within an operator, of which the profiler's own tables know the
    difference only. They are read from the exported trace because that is public: `export_memory_timeline` is
    deprecated, and the events that both are made of are private. What was allocated before the profiler started is not
    seen when it is released, hence both calls under one profiler. Nor is memory that libraries get elsewhere (oneDNN's
    scratch).
    """
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # else each start and stop of the profiler is a line on stderr
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        first()
        with record_function('second call'):
            second()
    with tempfile.TemporaryDirectory() as folder:
        profiler.export_chrome_trace(f'{folder}/trace.json')
        events = json.loads(Path(folder, 'trace.json').read_text())['traceEvents']
    (start,) = [event['ts'] for event in events if event.get('name') == 'second call' and event['ph'] == 'X']
    changes = [event for event in events if event.get('name') == '[memory]' and event['args']['Device Type'] == 0]
    left = sum(change['args']['Bytes'] for change in changes if change['ts'] < start)
    in_second = [change['args'] for change in sorted(changes, key=lambda change: change['ts']) if change['ts'] >= start]
    if not in_second:
        return left, 0
    held = in_second[0]['Total Allocated'] - in_second[0]['Bytes']
    return left, max(held, *(change['Total Allocated'] for change in in_second)) - held


# ---- time ----


def measure(contestants: dict[str, Contestant], rounds: int, warmup: int, device: str, clock: str = 'wall') -> None:
    """Runs all contestants once per round, each time another one first, and keeps their times."""
    cuda = torch.device(device).type == 'cuda'
    now = time.perf_counter if clock == 'wall' else time.process_time
    for number in range(-warmup, rounds):
        # The collector runs between rounds, not in whichever step it happens to fall.
        gc.collect()
        gc.disable()
        for name in order_of_round(list(contestants), number):
            if cuda:
                torch.cuda.synchronize(device)
            start = now()
            contestants[name].run()
            if cuda:
                torch.cuda.synchronize(device)
            seconds = now() - start
            if number >= 0:
                contestants[name].seconds.append(seconds)
        gc.enable()
        print(f'round {number + 1} of {rounds}' if number >= 0 else 'warm-up', file=sys.stderr, flush=True)


def order_of_round(names: Sequence[str], number: int) -> list[str]:
    """The names, rotated by one more in each round and backwards in every other cycle of rotations.

    Every name comes first, in the middle and last equally often, and does not always follow the same one, whose memory
    and caches it would inherit.
    """
    cycle, first = divmod(number, len(names))
    order = [*names[first:], *names[:first]]
    return order[::-1] if cycle % 2 else order


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line; the reference method is always among the methods."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='resnet18', help='any timm model')
    parser.add_argument('--size', type=int, nargs=2, default=(96, 128), metavar=('HEIGHT', 'WIDTH'))
    parser.add_argument('--batch', type=int, default=4)
    parser.add_argument('--heads', choices=DECODERS, default='deeplab', help='decoder of the three heads')
    parser.add_argument('--output-stride', type=int, default=8, help="0 keeps the model's own")
    parser.add_argument(
        '--methods',
        nargs='+',
        default=[PLAIN, 'ew', 'ew-log', 'rep-mtl', 'pcgrad'],
        metavar='METHOD',
        help=f"'{PLAIN}' (mmengine's OptimWrapper), names in configs/_base_/methods, paths of such files, or 'all' of "
        f"that folder but stl; @parameter or @representation behind a name sets the level; '{REFERENCE}', which ratios "
        'are made with, is added',
    )
    parser.add_argument(
        '--autojac',
        nargs='?',
        const='default',
        choices=('default', 'lean'),
        help="also measure torchjd's own steps; 'lean': with its options for less memory",
    )
    parser.add_argument('--group', type=int, default=6, help='models that are held at once, beside that of ew')
    parser.add_argument('--precision', choices=DTYPES, default='fp32')
    parser.add_argument('--device', type=device_argument, default='cpu', help='cpu, cuda, cuda:1, ...')
    parser.add_argument('--rounds', type=int, default=20, help='at least 2')
    parser.add_argument('--warmup', type=int, default=3, help='rounds that are not counted')
    parser.add_argument('--threads', type=int, default=None, help="default: torch's own choice")
    parser.add_argument(
        '--clock',
        choices=('wall', 'process'),
        default='wall',
        help="'process': processor seconds of this process, for a busy machine; CPU, one thread",
    )
    parser.add_argument('--json', type=Path, default=None, help='also write the numbers to this file')
    args = parser.parse_args(argv)
    if args.rounds < 2:
        parser.error('--rounds must be at least 2, quartiles need it')
    if args.group < 1:
        parser.error('--group must be at least 1')
    if args.clock == 'process' and (args.threads != 1 or torch.device(args.device).type != 'cpu'):
        parser.error('--clock process needs --threads 1 and --device cpu: it adds up the seconds of all threads')
    if args.autojac and args.precision == 'fp16':
        parser.error('--autojac has no gradient scaler; use --precision fp32 or bf16')
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints, and writes the numbers where asked."""
    args = parse_args(argv)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    names, without = plan(expand(args.methods, bool(args.autojac)), bool(args.autojac), args.group)
    groups = []
    for number, group in enumerate(names):
        print(f'group {number + 1} of {len(names)}: {", ".join(group)}', file=sys.stderr, flush=True)
        groups.append(run_group(group, args))
    model = build_model(args.model, args.heads, args.output_stride, args.device)
    shared_parameters = sum(p.numel() for p in model.encoder.parameters() if p.requires_grad)
    report = make_report(groups, describe(args, shared_parameters), without)
    print_report(report)
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(args.json) as file:
            file.write((json.dumps(report, indent=2) + '\n').encode())


if __name__ == '__main__':
    main()
