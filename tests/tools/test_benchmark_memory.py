"""How ``benchmark_step.py`` measures memory."""

import pytest
import torch

pytestmark = pytest.mark.filterwarnings('ignore:RepMTL. CSA on 2 samples')


class Allocations:
    """The first call leaves 3 units; the next ones free 1 of them, hold 4 + 3 more, and end as they began."""

    def __init__(self, unit: int, device: str) -> None:
        self.unit, self.device, self.kept = unit, device, None

    def new(self, units: int) -> torch.Tensor:
        return torch.empty(units * self.unit, dtype=torch.uint8, device=self.device)

    def __call__(self) -> None:
        first = self.kept is None
        if first:
            self.kept = [self.new(2), self.new(1)]
        else:
            self.kept.pop()
        one = self.new(4)
        two = self.new(3)
        del one, two
        if not first:
            self.kept.append(self.new(1))


def test_memory_on_the_cpu_is_exact(tool):  # noqa: F811
    calls = Allocations(1000, 'cpu')
    assert tool.cpu_memory(calls, calls) == (3000, 6000)
    assert tool.cpu_memory(lambda: None, lambda: None) == (0, 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_memory_on_a_gpu_is_that_of_the_allocator(tool):  # noqa: F811
    calls = Allocations(2**20, 'cuda')
    assert tool._cuda_memory(calls, calls, 'cuda') == (3 * 2**20, 6 * 2**20)


@pytest.mark.parametrize(
    ('method', 'copies'),
    [
        ('ew', 0),
        ('pcgrad@representation', 0),
        ('pcgrad', 3),
        ('moco', 6),
        ('mtadam', 9),
        ('sdmgrad', 9),
        ('autojac:pcgrad', 0),
    ],
)
def test_what_a_method_keeps_is_its_rows_and_its_state(tool, make, method, copies):  # noqa: F811
    contestant = make(method)
    memory = tool.measure_memory(contestant, 'cpu')
    gradient = 4 * sum(p.numel() for p in make.model.encoder.parameters())
    assert memory.kept / gradient == pytest.approx(copies, abs=0.01)
    assert (
        memory.peak > 4 * sum(p.numel() for p in make.model.parameters()) and memory.total == memory.peak + memory.kept
    )


def test_steps_that_the_scaler_skips_are_not_the_first(tool, steps):  # noqa: F811
    weight, calls = torch.nn.Parameter(torch.zeros(1000)), []
    optimizer = torch.optim.Adam([weight])
    with pytest.raises(RuntimeError, match='no step in 40 tries'):
        tool.measure_memory(steps.Contestant(lambda: None, optimizer), 'cpu')

    def run() -> None:
        calls.append(None)
        if len(calls) > 3:
            weight.grad = torch.ones_like(weight)
            optimizer.step()
            optimizer.zero_grad()

    assert tool.measure_memory(steps.Contestant(run, optimizer), 'cpu').kept == 0
