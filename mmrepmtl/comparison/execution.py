"""Runs the missing runs of a comparison, several at once, through submitit."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import cloudpickle
import submitit

from mmrepmtl.apis.config_file import PACKAGE
from mmrepmtl.comparison import job as job_module
from mmrepmtl.comparison.collect import commit, cores, device_name, versions
from mmrepmtl.comparison.job import LOG, RunJob, tail
from mmrepmtl.comparison.locks import FolderLock
from mmrepmtl.comparison.run_progress import Progress
from mmrepmtl.comparison.runs import Run
from mmrepmtl.utils.files import whole_file

JOBS = 'jobs'
QUEUED = 'slurm_job'
"""File in a run's folder: the number of its job on a cluster."""
POLL_SECONDS = 0.5
TAIL = 12
"""Lines of a failed run's log that are shown."""
_YEAR_MINUTES = 366 * 24 * 60

# The process that runs a job then need not import this package.
cloudpickle.register_pickle_by_value(job_module)


@dataclass
class Resources:
    """The cores and GPUs that the runs share.

    Attributes:
        jobs: How many run at once.
        gpus: ``CUDA_VISIBLE_DEVICES`` of one run each; empty: all of the process for each run.
        threads: Threads of one run.
        slurm: Partition, or None for this machine.
        slurm_options: Further options of submitit's SlurmExecutor.
    """

    jobs: int = 1
    gpus: tuple[str, ...] = ()
    threads: int = 1
    slurm: str | None = None
    slurm_options: Mapping[str, Any] | None = None


def share_out(jobs: int, device: str, slurm: str | None, slurm_options: Mapping[str, Any]) -> Resources:
    """Divides the cores and GPUs of this machine among the runs.

    Args:
        jobs: How many run at once.
        device: 'auto': the GPUs that there are, one per run in turn, else the CPU; 'cpu'; or numbers of GPUs, '0,2'.
        slurm: Partition; Slurm then deals out cores and GPUs.
        slurm_options: Of submitit's SlurmExecutor.

    Raises:
        ValueError: ``jobs`` is below 1, or there is no such GPU.
    """
    import torch

    if jobs < 1:
        raise ValueError(f'--jobs: {jobs} runs at once are none; give 1 or more')
    threads = max(1, cores() // jobs)
    if os.environ.get('OMP_NUM_THREADS', '').isdecimal():
        threads = min(threads, int(os.environ['OMP_NUM_THREADS']))
    if slurm is not None:
        return Resources(jobs, (), int(slurm_options.get('cpus_per_task', threads)), slurm, slurm_options)
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    there = [name for name in visible.split(',') if name] if visible is not None else None
    count = torch.cuda.device_count()
    names = there if there is not None else [str(number) for number in range(count)]
    if device == 'auto':
        gpus = tuple(names) if count else ('',)
    elif device == 'cpu':
        gpus = ('',)
    else:
        gpus = tuple(part.removeprefix('cuda:') for part in device.split(','))
        unknown = [part for part in gpus if part not in names]
        if unknown:
            raise ValueError(
                f'--device: there is no GPU {unknown[0]!r}; there are {", ".join(names) or "none"}, and cpu'
            )
    return Resources(jobs, gpus, threads)


class Execution:
    """Executes runs, tells what happens, and leaves everything resumable when it is stopped.

    Args:
        work_dir: The folder of the comparison.
        lock: Held on it.
        resources: What the runs share.
        starting: Called with each run before it starts.
        finished: Called with each run that is done.
        progress: Says what happens.
    """

    def __init__(
        self,
        work_dir: Path,
        lock: FolderLock,
        resources: Resources,
        starting: Callable[[Run], None],
        finished: Callable[[Run], None],
        progress: Progress,
    ) -> None:
        self._lock, self._resources = lock, resources
        self._starting, self._finished, self.progress = starting, finished, progress
        folder = work_dir / JOBS
        make = _local_executor if resources.slurm is None else _slurm_executor
        self._executor: submitit.Executor = make(folder, resources)
        self.stopped = 0
        self.failed: list[Run] = []

    def run(self, runs: Sequence[Run]) -> None:
        """Executes the runs; returns when all are over, or when a signal has stopped them."""
        waiting, told = list(runs), False
        running: dict[int, tuple[Run, submitit.Job]] = {}
        with self._listening():
            while (waiting and not self.stopped) or running:
                for slot, (run, job) in list(running.items()):
                    if job.done():
                        del running[slot]
                        self._end(run, job)
                if self.stopped and not told:
                    told = True
                    self._stop(len(running))
                if self.stopped and self._resources.slurm:
                    break
                for slot in range(self._resources.jobs):
                    if slot not in running and not self.stopped:
                        self._start_next(waiting, running, slot)
                self.progress.show([run for run, _ in running.values()])
                if waiting or running:
                    time.sleep(POLL_SECONDS)

    def _start_next(self, waiting: list[Run], running: dict[int, tuple[Run, submitit.Job]], slot: int) -> None:
        slurm = self._resources.slurm is not None
        while True:
            # A run that a killed comparison has left at work here ends by itself, with a checkpoint.
            run = next((run for run in waiting if slurm or run.state != 'running'), None)
            if run is None:
                return
            waiting.remove(run)
            if run.state != 'done':
                break
            self._done(run)
        job = self._queued(run) if slurm else None
        if job is not None:
            self.progress.say(f'in the queue: {run.name}, job {job.job_id}')
        else:
            self._starting(run)
            job = self._submit(run, slot)
            self.progress.say(f'started: {run.name}' + (f', job {job.job_id}' if slurm else ''))
        running[slot] = (run, job)

    def _queued(self, run: Run) -> submitit.Job | None:
        """The job of this run that an earlier call has left in Slurm's queue."""
        file = run.folder / QUEUED
        if not file.is_file():
            return None
        job: submitit.Job = submitit.SlurmJob(self._executor.folder, file.read_text(encoding='utf-8').strip())
        return None if job.done(force_check=True) else job

    def _stop(self, count: int) -> None:
        if self._resources.slurm is not None:
            self.progress.say(f'{count} jobs stay in the queue; the same command takes them up again')
            return
        self._lock.stop_runs()
        self.progress.say(f'stopping: {count} runs write their checkpoints; a second signal does not wait for them')

    def _done(self, run: Run) -> None:
        try:
            self._finished(run)
        except ValueError as error:  # a file of its numbers is damaged; the other runs go on
            self.failed.append(run)
            self.progress.say(f'failed: {run.name}; {error}')
        else:
            self.progress.say(f'done: {run.name}')

    def _submit(self, run: Run, slot: int) -> submitit.Job:
        env, name = self._environment(slot)
        contestant = run.contestant
        about = dict(
            label=contestant.entry.label,
            seed=run.seed,
            config_hash=contestant.config_hash,
            settings=contestant.settings,
            commit=commit(),
            versions=versions(name, self._resources.threads),
        )
        steps = [dict(name=step, command=list(command)) for step, command in run.steps]
        alive = None if self._resources.slurm else str(self._lock.alive.absolute())
        folder = str(run.folder.absolute())
        spec = dict(folder=folder, steps=steps, env=env, cwd=os.getcwd(), alive=alive, about=about)
        with _deaf():
            job = self._executor.submit(RunJob(spec))
        if self._resources.slurm:
            with whole_file(run.folder / QUEUED) as file:
                file.write(f'{job.job_id}\n'.encode())
        return job

    def _environment(self, slot: int) -> tuple[dict[str, str], str]:
        """The part of a run's environment that differs, and the name of its device."""
        threads = str(self._resources.threads)
        env = dict(OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads, PYTHONUNBUFFERED='1')
        if PACKAGE.parent.name not in ('site-packages', 'dist-packages'):  # a checkout that is not installed
            paths = [str(PACKAGE.parent), *filter(None, [os.environ.get('PYTHONPATH')])]
            env['PYTHONPATH'] = os.pathsep.join(paths)
        if self._resources.slurm is not None:
            return env, f'slurm {self._resources.slurm}'
        gpus = self._resources.gpus
        env['CUDA_VISIBLE_DEVICES'] = gpus[slot % len(gpus)]
        return env, device_name(env['CUDA_VISIBLE_DEVICES'])

    def _end(self, run: Run, job: submitit.Job) -> None:
        record = run.record()
        if run.state == 'done':
            self._done(run)
        elif record.get('state') == 'interrupted' or self.stopped:
            self.progress.say(f'stopped: {run.name}; the same command goes on with it')
            self.failed += [] if self.stopped else [run]
        elif run.state == 'running':
            self.failed.append(run)
            self.progress.say(f'busy: {run.name}; another process is at work in {run.folder}')
        else:
            self.failed.append(run)
            self.progress.say(f'failed: {run.name}; the last lines of {run.folder / LOG}:')
            lines = tail(run.folder / LOG) or tail(job.paths.stdout) or ['(there is no log)']
            for line in lines[-TAIL:]:
                self.progress.say(f'    {line}')

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """Hears the signals that end a comparison; a second one does not wait for the runs."""

        def hear(number: int, frame: FrameType | None) -> None:
            if self.stopped:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
                return
            self.stopped = number  # the loop does the rest: it may be printing now

        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup asks for
            numbers.append(signal.SIGHUP)
        old = {number: signal.signal(number, hear) for number in numbers}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Has what is started in here ignore the terminal's signals, which this process acts on for all.

    submitit's controllers would else kill their jobs on a Ctrl-C before these have written a checkpoint.
    """
    numbers = (signal.SIGINT, signal.SIGHUP)
    old = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _local_executor(folder: Path, resources: Resources) -> submitit.LocalExecutor:
    executor = submitit.LocalExecutor(folder)
    executor.update_parameters(timeout_min=_YEAR_MINUTES, stderr_to_stdout=True)
    return executor


def _slurm_executor(folder: Path, resources: Resources) -> submitit.SlurmExecutor:
    try:
        executor = submitit.SlurmExecutor(folder)
        executor.update_parameters(
            **dict(time=24 * 60, stderr_to_stdout=True) | dict(resources.slurm_options or {}),
            partition=resources.slurm,
        )
    except (RuntimeError, ValueError) as error:
        raise ValueError(f'--slurm: {error}') from error
    return executor
