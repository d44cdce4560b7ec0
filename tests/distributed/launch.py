"""Runs a function in several real gloo processes and returns what each of them returned."""

import socket
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def _entry(rank: int, world_size: int, port: int, folder: str, function, args) -> None:
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=world_size)
    try:
        torch.save(function(rank, *args), Path(folder, f'{rank}.pt'))
        dist.barrier()
    finally:
        dist.destroy_process_group()


def run_processes(function, *args, world_size: int = 2) -> list:
    """Calls ``function(rank, *args)`` (a module-level function) in each process; returns the results by rank."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_entry, (world_size, _free_port(), folder, function, args), nprocs=world_size)
        return [torch.load(Path(folder, f'{rank}.pt')) for rank in range(world_size)]
