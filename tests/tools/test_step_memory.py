"""Memory of a step of each method, and its copies to the host."""

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from mmrepmtl.engine import MultiTaskOptimWrapper
from mmrepmtl.methods.aggregation import base, sdmgrad, state
from tests.engine.overlays import AGGREGATED, CASES, is_at_parameters, ready
from tests.engine.toy import ToyModel, make_model

pytestmark = pytest.mark.filterwarnings('ignore:RepMTL')

COMBINED = [case for case in CASES if case.partition('@')[0] in AGGREGATED]


class Wide(ToyModel):
    """An encoder that has nearly all of the parameters, on two samples."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(512, 400), nn.Tanh(), nn.Linear(400, 256))
        self.heads = nn.ModuleDict({task: nn.Linear(256, 1) for task in self.tasks})

    def losses(self, inputs, a, b, c):
        z = self.encoder(inputs)
        return {task: (self.heads[task](z) - t).square().mean() for task, t in zip(self.tasks, (a, b, c), strict=True)}


class Heavy(Wide):
    """Heads that have more parameters than the encoder, in several tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(
            {task: nn.Sequential(*(nn.Linear(256, 256) for _ in range(6)), nn.Linear(256, 1)) for task in self.tasks}
        )


def wide_batch(seed: int = 0) -> dict:
    draw = torch.Generator().manual_seed(seed)
    targets = {task: torch.randn(2, 1, generator=draw) for task in Wide.tasks}
    return dict(inputs=torch.randn(2, 512, generator=draw), **targets)


@pytest.fixture
def make(monkeypatch):
    """A step of a method on a wide model, and the method's wrapper."""
    for module in (base, state, sdmgrad):  # blocks that are worked on at once are small beside a real encoder
        monkeypatch.setattr(module, 'COLUMNS', 2**10)

    def make(case: str, cls: type[Wide] = Wide, **changes):
        model, settings = make_model(cls=cls, dtype=torch.float32), ready(case, **changes)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, foreach=False)
        wrapper = MultiTaskOptimWrapper(optimizer, shared='encoder', diagnostics_interval=0, **settings)
        batches = [wide_batch(seed) for seed in range(settings.get('accumulative_counts', 1))]
        return (lambda: [model.train_step(batch, wrapper) for batch in batches]), wrapper

    return make


@pytest.mark.parametrize('case', COMBINED)
def test_a_step_holds_a_row_per_task_and_one_gradient_beside_the_methods_state(
    tool,  # noqa: F811
    make,
    case,
):
    """T + 1 copies at the parameters (SDMGrad: of each of its three batches), one at Z."""
    step, wrapper = make(case)
    kept, peak = tool.cpu_memory(step, step)
    gradient = 4 * sum(p.numel() for p in make_model(cls=Wide).encoder.parameters())
    own = sum(b.shape[0] for name, b in wrapper.aggregator.named_buffers() if name.endswith('_TP'))
    assert own == dict(moco=3, mtadam=6).get(case, 3 * (case in ('db-mtl', 'excess-mtl')))
    rows = 3 * wrapper.aggregator.num_batches if is_at_parameters(case) else 0
    assert rows + 1 <= (kept + peak) / gradient - own < rows + 1.1


@pytest.mark.parametrize('case', ['pcgrad', 'pcgrad@representation', 'nash-mtl', 'metabalance', 'mtadam'])
def test_a_penalty_costs_one_gradient_more(tool, make, case):  # noqa: F811
    """That of the penalty, which the combined one is added to."""
    step, wrapper = make(case, regularizers=[dict(type='RepMTL')])
    kept, peak = tool.cpu_memory(step, step)
    gradient = 4 * sum(p.numel() for p in make_model(cls=Wide).encoder.parameters())
    own = 6 * (case == 'mtadam') + 3 * is_at_parameters(case)
    assert 1 < (kept + peak) / gradient - own < 2.1


@pytest.mark.parametrize('case', ['excess-mtl', 'db-mtl', 'gradnorm', 'nash-mtl'])
def test_heads_that_are_weighted_in_the_end_keep_one_gradient(tool, make, case):  # noqa: F811
    """Beside those that are in ``.grad`` there is one tensor of them at a time."""
    model = make_model(cls=Heavy)
    heads = 4 * sum(p.numel() for p in model.heads.parameters())
    weighted, plain = (tool.cpu_memory(*2 * (make(name, Heavy)[0],))[1] for name in (case, 'pcgrad'))
    assert weighted - plain < heads / 6


class ToHost(TorchFunctionMode):
    """Notes how much is moved to the host, or read from there."""

    READS = ('cpu', 'tolist', 'item', 'numpy', '__float__', '__int__', '__bool__', '__array__')

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, '__name__', '')
        if name in self.READS or name == 'to' and 'cpu' in args[1:]:
            self.sizes.append(args[0].numel())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('case', CASES)
def test_nothing_is_moved_to_the_host_but_numbers_for_each_pair_of_tasks(make, case):
    step, _ = make(case)
    step()
    with ToHost() as moved:
        step()
    assert moved.sizes and max(moved.sizes) <= 9
