"""Measures CSA's low-rank form against the literal C x C formula: memory and time of a forward and backward.

Memory is the peak resident set of a child process per form (Linux: VmHWM; ``torch.cuda.max_memory_allocated`` on a GPU)
beyond what it held once the saliency was allocated. Times are the best of runs that alternate between both forms in one
process.

    python tools/analysis_tools/benchmark_rep_mtl.py
"""

import argparse
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from mmrepmtl.methods.rep_mtl import cross_task_saliency_alignment
from mmrepmtl.utils.device import device_argument

#: (T, B, C, H, W): a ResNet-50's last map at output stride 8 on 288 x 384, and its pooled map in image classification.
SHAPES = ((3, 8, 2048, 36, 48), (3, 64, 512, 7, 7))


def literal_csa(saliency: Tensor, temperature: float = 1.0) -> Tensor:
    """Eq. 7-9 as printed, batched, with all C x C affinities; products are normalised, not copies of the factors."""
    maps_TBCN = saliency.flatten(3)
    affinity_TBK = (maps_TBCN @ maps_TBCN.mT).flatten(2)
    anchor_BCT = maps_TBCN.mean(3).permute(1, 2, 0)
    anchor_BK = (anchor_BCT @ anchor_BCT.mT).flatten(1)
    anchor_BK = anchor_BK / anchor_BK.norm(dim=1, keepdim=True)
    positive_TB = torch.einsum('tbk,bk->tb', affinity_TBK, anchor_BK) / affinity_TBK.norm(dim=2) / temperature
    negative_BB = anchor_BK @ anchor_BK.T / temperature
    itself = torch.eye(len(negative_BB), dtype=torch.bool, device=saliency.device)
    return (negative_BB.masked_fill(itself, -torch.inf).logsumexp(1) - positive_TB).mean()


FORMS: dict[str, Callable[[Tensor], Tensor]] = {'literal': literal_csa, 'low-rank': cross_task_saliency_alignment}


def make_saliency(shape: tuple[int, ...], device: str) -> Tensor:
    """Random saliency of the usual magnitude, with a common part so that anchors are not noise."""
    generator = torch.Generator().manual_seed(0)
    saliency = torch.randn(shape, generator=generator)
    saliency += torch.randn(*shape[:3], 1, 1, generator=generator)
    return saliency.mul_(1e-4).to(device).requires_grad_()


def forward_backward(form: str, saliency: Tensor) -> float:
    """One forward and backward; returns the value."""
    value = FORMS[form](saliency)
    (saliency.grad,) = torch.autograd.grad(value, saliency)
    return value.item()


def peak_beyond_saliency(form: str, shape: tuple[int, ...], device: str, threads: int, result) -> None:
    """Sends the peak memory, in bytes, beyond what is held before the call."""
    torch.set_num_threads(threads)
    forward_backward(form, make_saliency((2, 2, 4, 2, 2), device))  # The libraries' own buffers.
    saliency = make_saliency(shape, device)
    before = _peak(saliency, reset=True)
    forward_backward(form, saliency)
    result.send(_peak(saliency) - before)


def _peak(saliency: Tensor, reset: bool = False) -> int:
    """Bytes at the peak since the last reset."""
    if saliency.is_cuda:
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    if reset:
        Path('/proc/self/clear_refs').write_text('5')  # VmHWM starts again from what is held now.
    # Not ru_maxrss: a child inherits the peak of its parent, and cannot reset it.
    status = dict(line.split(':', 1) for line in Path('/proc/self/status').read_text().splitlines())
    return 1024 * int(status['VmHWM'].split()[0])


def measure_memory(form: str, shape: tuple[int, ...], device: str, threads: int) -> float:
    """Peak memory of a fresh process beyond the saliency, in MB."""
    context = multiprocessing.get_context('spawn')
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=peak_beyond_saliency, args=(form, shape, device, threads, sender))
    child.start()
    sender.close()
    peak = receiver.recv()
    child.join()
    return peak / 1e6


def measure_times(shape: tuple[int, ...], device: str, runs: int) -> dict[str, float]:
    """Least seconds per form, alternating: the least disturbed run on a machine that others use too."""
    saliency = make_saliency(shape, device)
    seconds: dict[str, list[float]] = {form: [] for form in FORMS}
    values = {}
    for run in range(runs + 1):
        for form in FORMS:
            start = time.perf_counter()
            values[form] = forward_backward(form, saliency)  # Ends with item(), which waits for a GPU.
            if run:  # The first one warms up.
                seconds[form].append(time.perf_counter() - start)
    # Float32 norms over C^2 elements put the literal form off by some 1e-4 (the low-rank form: 1e-7 from float64).
    if abs(values['literal'] - values['low-rank']) > 1e-3 * abs(values['literal']):
        raise RuntimeError(f'the two forms disagree: {values}')
    return {form: min(times) for form, times in seconds.items()}


def main() -> None:
    """Prints one table row per shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--shape', type=int, nargs=5, action='append', metavar=('T', 'B', 'C', 'H', 'W'))
    parser.add_argument('--runs', type=int, default=3)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--device', type=device_argument, default='cpu')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f'torch {torch.__version__}, {args.device}, {args.threads} threads, best of {args.runs} alternating runs')
    print(
        f'{"T x B x C x H x W":>22} | {"S, MB":>6} | {"beyond S, MB: literal":>21} {"low-rank":>8} {"ratio":>5} | '
        f'{"seconds: literal":>16} {"low-rank":>8} {"speed-up":>8}'
    )
    for shape in map(tuple, args.shape or SHAPES):
        memory = {form: measure_memory(form, shape, args.device, args.threads) for form in FORMS}
        times = measure_times(shape, args.device, args.runs)
        speed_up = times['literal'] / times['low-rank']
        print(
            f'{" x ".join(map(str, shape)):>22} | {4 * torch.Size(shape).numel() / 1e6:6.0f} | '
            f'{memory["literal"]:21.0f} {memory["low-rank"]:8.0f} {memory["low-rank"] / memory["literal"]:5.2f} | '
            f'{times["literal"]:16.3f} {times["low-rank"]:8.3f} {speed_up:8.1f}',
            flush=True,
        )


if __name__ == '__main__':
    main()
