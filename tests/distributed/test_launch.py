"""The end of a distributed run."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mmrepmtl.apis import finish_launch


def gloo_threads() -> int:
    return sum('gloo' in file.read_text() for file in Path('/proc/self/task').glob('*/comm'))


@pytest.mark.skipif(sys.platform != 'linux', reason='counts threads in /proc')
def test_no_thread_of_the_group_outlives_its_end():
    """One that still runs when the interpreter ends may abort the process, and the launcher then reports a failure."""
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    run = SimpleNamespace(model=DistributedDataParallel(nn.Linear(2, 2)))
    run.hook = SimpleNamespace(run=run)  # as a Runner and its loops
    del run
    assert gloo_threads() > 0
    finish_launch()
    assert gloo_threads() == 0 and not dist.is_initialized()
