"""Measures the training step of multi-task methods side by side, on one model and one batch of random data.

Every method has its own copy of the same initial model and its own Adam. In each round every method takes one step, and
the two forward passes that the counted costs are made of are measured too; the order rotates from round to round, so
that drift and other users of the machine hit all alike. Ratios are made within a round; shown are median and quartiles.

The counted cost is in units of F_e and F_h, the forward passes of the encoder and of all heads with their losses:

    plain, loss weighting, gradients combined at the representation    3 F_h + 3 F_e
    Rep-MTL                                                            6 F_h + 3 F_e
    gradients combined at the parameters, T tasks                      3 F_h + (1 + 2 T) F_e

`x counted (by ew)` is the step over (ew's measured step times the ratio of the two counted costs): what a method costs
beyond its arithmetic, with the optimizer and the rest of a step in both. `x counted (by F)` is the step over the
counted cost with the measured F_e and F_h put in: not 1 for ew either, since a backward is not exactly two forwards.

    python tools/analysis_tools/benchmark_step.py --methods plain ew ew-log rep-mtl pcgrad

On a machine that others use, `--clock process --threads 1` counts the seconds that this process computed.
"""

import argparse
import copy
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import Tensor, nn

from mmrepmtl.engine import MultiTaskOptimWrapper
from mmrepmtl.methods.rep_mtl import RepMTL
from mmrepmtl.models import MultiTaskModel
from mmrepmtl.registry import MODELS, OPTIM_WRAPPERS
from mmrepmtl.structures import MultiTaskDataSample

METHODS_FOLDER = Path(__file__).resolve().parents[2] / 'configs' / '_base_' / 'methods'
PLAIN, REFERENCE = 'plain', 'ew'
NUM_CLASSES = 13
DTYPES = dict(fp32=None, bf16=torch.bfloat16, fp16=torch.float16)
DECODERS = dict(deeplab='DeepLabDecoder', conv='ConvDecoder')


class AutocastOptimWrapper(OptimWrapper):
    """mmengine's plain wrapper under autocast without a scaler; its own AmpOptimWrapper needs an accelerator."""

    def __init__(self, optimizer: torch.optim.Optimizer, dtype: torch.dtype) -> None:
        super().__init__(optimizer)
        self.dtype = dtype

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with super().optim_context(model), torch.autocast(next(model.parameters()).device.type, self.dtype):
            yield


@dataclass
class Contestant:
    """Something that is timed once per round.

    Attributes:
        run: What is timed.
        counted: Factors of F_h and F_e in the counted cost; None for the forward passes themselves.
        seconds: One time per round.
        peak_bytes: Greatest GPU memory of a round beyond what was held before it.
    """
    run: Callable[[], object]
    counted: tuple[int, int] | None = None
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0


def build_model(args: argparse.Namespace) -> MultiTaskModel:
    """Semantic segmentation, depth and normals on one encoder, with random weights."""
    torch.manual_seed(0)
    decoder = dict(type=DECODERS[args.heads])
    encoder = dict(type='TimmEncoder', name=args.model, output_stride=args.output_stride or None)
    heads = dict(semseg=dict(type='SegmentationHead', num_classes=NUM_CLASSES, decoder=decoder),
                 depth=dict(type='DepthHead', decoder=decoder), normal=dict(type='NormalHead', decoder=decoder))
    return MODELS.build(dict(type='MultiTaskModel', encoder=encoder, heads=heads)).to(args.device).train()


def make_batch(batch: int, size: Sequence[int], device: str) -> dict:
    """Random images with random labels, as a data loader gives them, on the device."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for _ in range(batch):
        sample = MultiTaskDataSample(metainfo=dict(img_shape=tuple(size)))
        sample.set_target('semseg', torch.randint(0, NUM_CLASSES, tuple(size), generator=generator))
        sample.set_target('depth', 1 + 4 * torch.rand(1, *size, generator=generator))
        sample.set_target('normal', nn.functional.normalize(torch.randn(3, *size, generator=generator), dim=0))
        samples.append(sample.to(device))
    return dict(inputs=list(torch.rand(batch, 3, *size, generator=generator).to(device)), data_samples=samples)


def build_wrapper(method: str, model: nn.Module, precision: str) -> OptimWrapper:
    """The optim wrapper of a method: mmengine's own for 'plain', else as its file in configs/_base_/methods says.

    Raises:
        ValueError: There is no such method, or its step is not one of this model.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, weight_decay=1e-5)
    if method == PLAIN:
        if precision == 'fp16':
            if next(model.parameters()).device.type == 'cpu':
                raise ValueError("benchmark_step: 'plain' in fp16 is mmengine's AmpOptimWrapper, which needs a GPU")
            return AmpOptimWrapper(optimizer=optimizer, dtype='float16')
        dtype = DTYPES[precision]
        return OptimWrapper(optimizer) if dtype is None else AutocastOptimWrapper(optimizer, dtype)
    path = Path(method) if method.endswith('.py') else METHODS_FOLDER / f'{method}.py'
    if not path.is_file():
        known = sorted(file.stem for file in METHODS_FOLDER.glob('*.py'))
        raise ValueError(f'benchmark_step: no method {method!r}; there are {PLAIN}, {", ".join(known)}, or the path of '
                         'a file like those')
    config = Config.fromfile(path)
    if config.get('single_task'):
        raise ValueError(f'benchmark_step: {method!r} trains one model per task, so its step is another one; leave it '
                         'out')
    return OPTIM_WRAPPERS.build(dict(config.optim_wrapper, optimizer=optimizer, shared='encoder', precision=precision))


def counted_cost(wrapper: OptimWrapper, num_tasks: int) -> tuple[int, int]:
    """Factors of F_h and F_e in the step's counted cost (docstring of this file; Rep-MTL adds 3 F_h to any method).

    Raises:
        ValueError: For a regulariser whose cost is not known.
    """
    heads, encoder = 3, 3
    if isinstance(wrapper, MultiTaskOptimWrapper):
        if wrapper.aggregator is not None and wrapper.aggregator.level == 'parameter':
            encoder = 1 + 2 * num_tasks
        for regularizer in wrapper.regularizers:
            if not isinstance(regularizer, RepMTL) or regularizer.interval != 1:
                raise ValueError(f'benchmark_step: the cost of {regularizer} is not known, only that of RepMTL with '
                                 'interval=1')
        heads += 3 if wrapper.regularizers else 0
    return heads, encoder


def make_contestants(args: argparse.Namespace) -> dict[str, Contestant]:
    """Everything that is timed, by name; 'encoder' and 'heads' are the forward passes."""
    initial = build_model(args)
    data = make_batch(args.batch, args.size, args.device)
    contestants = _forward_passes(copy.deepcopy(initial), data, DTYPES[args.precision])
    for method in args.methods:
        model = copy.deepcopy(initial)
        wrapper = build_wrapper(method, model, args.precision)
        contestants[method] = Contestant(lambda model=model, wrapper=wrapper: model.train_step(data, wrapper),
                                         counted_cost(wrapper, len(initial.tasks)))
    return contestants


def _forward_passes(model: MultiTaskModel, data: dict, dtype: torch.dtype | None) -> dict[str, Contestant]:
    """Forward passes as in training (BatchNorm in training mode), without gradients."""
    inputs, samples = model.data_preprocessor(data, training=True).values()
    device, size = inputs.device.type, tuple(inputs.shape[-2:])

    def autocast():
        return nullcontext() if dtype is None else torch.autocast(device, dtype)

    @torch.no_grad()
    def encoder() -> Tensor:
        with autocast():
            return model.encoder(inputs)

    features = encoder()

    @torch.no_grad()
    def heads() -> None:
        with autocast():
            for head in model.heads.values():
                head.loss_terms(head(features, size), samples)

    return dict(encoder=Contestant(encoder), heads=Contestant(heads))


def measure(contestants: dict[str, Contestant], rounds: int, warmup: int, device: str, clock: str = 'wall') -> None:
    """Runs all contestants once per round, each time another one first, and keeps their times."""
    cuda = torch.device(device).type == 'cuda'
    now = time.perf_counter if clock == 'wall' else time.process_time
    for number in range(-warmup, rounds):
        # The collector runs between rounds, not in whichever step it happens to fall.
        gc.collect()
        gc.disable()
        for name in order_of_round(list(contestants), number):
            contestant, held = contestants[name], 0
            if cuda:
                torch.cuda.synchronize(device)
                torch.cuda.reset_peak_memory_stats(device)
                held = torch.cuda.memory_allocated(device)
            start = now()
            contestant.run()
            if cuda:
                torch.cuda.synchronize(device)
            seconds = now() - start
            if number >= 0:
                contestant.seconds.append(seconds)
            if number >= 0 and cuda:
                contestant.peak_bytes = max(contestant.peak_bytes, torch.cuda.max_memory_allocated(device) - held)
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


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Median and the two quartiles."""
    first, median, third = statistics.quantiles(values, n=4, method='inclusive')
    return dict(q1=first, median=median, q3=third)


def evaluate(contestants: dict[str, Contestant]) -> dict[str, dict]:
    """Per method: milliseconds, ratios (median and quartiles over rounds) and the counted cost."""
    encoder, heads = contestants['encoder'].seconds, contestants['heads'].seconds
    usual_encoder, usual_heads = statistics.median(encoder), statistics.median(heads)
    reference = contestants[REFERENCE]

    def count(contestant: Contestant, of_heads: float, of_encoder: float) -> float:
        return contestant.counted[0] * of_heads + contestant.counted[1] * of_encoder

    rows = {}
    for name, contestant in contestants.items():
        if contestant.counted is None:
            continue
        times = contestant.seconds
        counted_to_ew = count(contestant, usual_heads, usual_encoder) / count(reference, usual_heads, usual_encoder)
        to_ew = [mine / ew for mine, ew in zip(times, reference.seconds, strict=True)]
        by_f = [mine / count(contestant, h, e) for mine, h, e in zip(times, heads, encoder, strict=True)]
        rows[name] = dict(
            median_ms=1000 * statistics.median(times), least_ms=1000 * min(times), to_ew=quartiles(to_ew),
            counted_cost='{} F_h + {} F_e'.format(*contestant.counted), counted_to_ew=counted_to_ew,
            to_counted_by_ew=quartiles([ratio / counted_to_ew for ratio in to_ew]), to_counted_by_f=quartiles(by_f),
            peak_mib=contestant.peak_bytes / 2**20 if contestant.peak_bytes else None)
        if PLAIN in contestants:
            plain = contestants[PLAIN].seconds
            rows[name]['to_plain'] = quartiles([mine / other for mine, other in zip(times, plain, strict=True)])
    return rows


def describe(args: argparse.Namespace) -> dict:
    """What was measured, and on what."""
    device = torch.cuda.get_device_name() if torch.device(args.device).type == 'cuda' else platform.processor() or 'CPU'
    return dict(model=args.model, size=list(args.size), batch=args.batch, heads=args.heads, tasks=3,
                output_stride=args.output_stride, precision=args.precision, device=args.device, device_name=device,
                clock=args.clock, threads=torch.get_num_threads(), cores=os.cpu_count(), rounds=args.rounds,
                torch=torch.__version__,
                load_average=list(os.getloadavg()) if hasattr(os, 'getloadavg') else None)


def print_report(setup: dict, forward: dict[str, dict], rows: dict[str, dict]) -> None:
    """Prints the setting, the forward passes and the table."""
    load = ', '.join(f'{value:.1f}' for value in setup['load_average'] or []) or 'unknown'
    print('{model}, stride {output_stride}, three {heads} heads, batch {batch} of {size[0]} x {size[1]}, {precision}, '
          'torch {torch}\n{device} ({device_name}), {threads} threads on {cores} cores, {clock} clock, '
          '{rounds} interleaved rounds'.format_map(setup) + f', load average at the end {load}\n\nmedian [quartiles]')
    for key, name in (('encoder', 'F_e'), ('heads', 'F_h')):
        times = forward[key]
        print(f'{name}  forward of the {key:7}  {times["median"]:8.1f} ms [{times["q1"]:.1f}, {times["q3"]:.1f}]')
    width = max(map(len, [*rows, 'method']))
    print(f'\n{"method":{width}} | {"ms":>8} {"least":>8} | {"x ew":>17} | {"counted cost":>14} {"x ew":>5} | '
          f'{"x counted (by ew)":>17} | {"x counted (by F)":>17} | {"peak MiB":>8}')
    for name, row in rows.items():
        peak = '-' if row['peak_mib'] is None else f'{row["peak_mib"]:.0f}'
        print(f'{name:{width}} | {row["median_ms"]:8.1f} {row["least_ms"]:8.1f} | {_spread(row["to_ew"]):>17} | '
              f'{row["counted_cost"]:>14} {row["counted_to_ew"]:5.2f} | {_spread(row["to_counted_by_ew"]):>17} | '
              f'{_spread(row["to_counted_by_f"]):>17} | {peak:>8}')
    print('\nx counted (by ew) = step / (step of ew in the same round * counted cost / counted cost of ew)\n'
          'x counted (by F)  = step / (counted cost with the F_h and F_e of the same round)\n'
          'peak MiB: GPU memory of a step beyond weights and optimizer state')
    if PLAIN in rows:
        percent = {key: 100 * (value - 1) for key, value in rows[REFERENCE]['to_plain'].items()}
        least = 100 * (rows[REFERENCE]['least_ms'] / rows[PLAIN]['least_ms'] - 1)
        print("{} over mmengine's OptimWrapper: {median:+.1f} % [{q1:+.1f}, {q3:+.1f}]".format(REFERENCE, **percent) +
              f', least step over least step {least:+.1f} %')


def _spread(values: dict[str, float]) -> str:
    return f'{values["median"]:.2f} [{values["q1"]:.2f}, {values["q3"]:.2f}]'


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line; the reference method is always among the methods."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='resnet18', help='any timm model')
    parser.add_argument('--size', type=int, nargs=2, default=(96, 128), metavar=('HEIGHT', 'WIDTH'))
    parser.add_argument('--batch', type=int, default=4)
    parser.add_argument('--heads', choices=DECODERS, default='deeplab', help='decoder of the three heads')
    parser.add_argument('--output-stride', type=int, default=8, help="0 keeps the model's own")
    parser.add_argument('--methods', nargs='+', default=[PLAIN, 'ew', 'ew-log', 'rep-mtl', 'pcgrad'], metavar='METHOD',
                        help=f"'{PLAIN}' (mmengine's OptimWrapper), names in configs/_base_/methods, or paths of such "
                        f"files; '{REFERENCE}', which ratios are made with, is added")
    parser.add_argument('--precision', choices=DTYPES, default='fp32')
    parser.add_argument('--device', default='cpu', help='cpu, cuda, cuda:1, ...')
    parser.add_argument('--rounds', type=int, default=20, help='at least 2')
    parser.add_argument('--warmup', type=int, default=3, help='rounds that are not counted')
    parser.add_argument('--threads', type=int, default=None, help="default: torch's own choice")
    parser.add_argument('--clock', choices=('wall', 'process'), default='wall',
                        help="'process': processor seconds of this process, for a busy machine; CPU, one thread")
    parser.add_argument('--json', type=Path, default=None, help='also write the numbers to this file')
    args = parser.parse_args(argv)
    if args.rounds < 2:
        parser.error('--rounds must be at least 2, quartiles need it')
    if args.clock == 'process' and (args.threads != 1 or torch.device(args.device).type != 'cpu'):
        parser.error('--clock process needs --threads 1 and --device cpu: it adds up the seconds of all threads')
    args.methods = list(dict.fromkeys([*args.methods, *([] if REFERENCE in args.methods else [REFERENCE])]))
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints, and writes the numbers where asked."""
    args = parse_args(argv)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    contestants = make_contestants(args)
    measure(contestants, args.rounds, args.warmup, args.device, args.clock)
    setup, rows = describe(args), evaluate(contestants)
    forward = {name: quartiles([1000 * s for s in contestants[name].seconds]) for name in ('encoder', 'heads')}
    print_report(setup, forward, rows)
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(dict(setup=setup, forward_ms=forward, methods=rows), indent=2) + '\n')


if __name__ == '__main__':
    main()
