"""A comparison as a whole: plan, execution, results."""

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from mmrepmtl.comparison import plan
from mmrepmtl.comparison.collect import rows_of
from mmrepmtl.comparison.entries import parse_options
from mmrepmtl.comparison.execution import Execution, share_out
from mmrepmtl.comparison.locks import FolderLock
from mmrepmtl.comparison.plan import Options, Run
from mmrepmtl.comparison.results import CONSTANT, RESULTS, Row, read_results, write_results
from mmrepmtl.utils.files import whole_file
from mmrepmtl.utils.folders import check_writable

CONSTANTS = 'constants.json'  # as a test calls it


class Comparison:
    """Methods x seeds on one config, in one folder.

    Args:
        config: The config file, or the name of one of this package.
        methods: The entries of ``--methods`` (:func:`parse_entries`).
        seeds: One number: so many, from 0; several: these.
        work_dir: Its folder.
        options: What holds for all runs.
        known: Results files with rows of runs that are done.

    Raises:
        FileNotFoundError: There is no such config or results file.
        ValueError: A method, a sweep or the config is not right, the config of a run in this folder has changed, or a
            results file has a run with another config.
    """

    def __init__(
        self,
        config: str,
        methods: Sequence[str],
        seeds: Sequence[int],
        work_dir: str | os.PathLike,
        options: Options | None = None,
        known: Sequence[str | os.PathLike] = (),
    ) -> None:
        self.config, self.work_dir, self.options = config, Path(work_dir), options or Options()
        self.seeds = check_seeds(seeds)
        self.results = self.work_dir / RESULTS
        self.contestants = plan.load_contestants(config, methods, self.options)
        self.runs = plan.make_runs(self.work_dir, self.contestants, self.seeds, self.options)
        self.rows: list[Row] = []
        for file in [*([self.results] if self.results.is_file() else []), *known]:
            rows = read_results(file)
            self.runs = plan.mark_known(self.runs, rows, file)
            self._add(rows)
        plan.check_unchanged([run for run in self.runs if not run.known])

    def plan_lines(self) -> list[str]:
        """What :meth:`run` would do, for a person."""
        return plan.plan_lines(self.runs)

    def run(
        self, jobs: int = 1, device: str = 'auto', slurm: str | None = None, slurm_options: Sequence[str] = ()
    ) -> int:
        """Trains and tests what is missing and writes the results after each run.

        Args:
            jobs: Runs at once.
            device: 'auto', 'cpu' or numbers of GPUs.
            slurm: Partition of a cluster; None: this machine.
            slurm_options: ``key=value`` of submitit's executor.

        Returns:
            0; 1 if a run failed; 128 and the signal if one stopped it.

        Raises:
            ValueError: Another comparison is at work in the folder, it cannot be written to, or there are no such
                resources.
        """
        resources = share_out(jobs, device, slurm, parse_options(slurm_options))
        check_writable(self.work_dir, 'the work directory')
        lock = FolderLock(self.work_dir)
        try:
            plan.write_plan(self.work_dir, self.config, self.contestants, self.seeds, self.options)
            left = [run for run in self.runs if run.state != 'done']
            for run in self.runs:
                if run.state == 'done' and not run.known:
                    self._finish(run, quiet=True)
            self._write()
            print(f'{len(self.runs)} runs, {len(self.runs) - len(left)} are done; {self.results}')
            execution = Execution(self.work_dir, lock, resources, self._prepare, self._finish, _say)
            execution.run(left)
        finally:
            lock.release()
        if execution.stopped:
            return 128 + execution.stopped
        if execution.failed:
            print(f'{len(execution.failed)} of {len(self.runs)} runs failed; the same command tries them again')
        return 1 if execution.failed else 0

    def _prepare(self, run: Run) -> None:
        """The best constants are the same for all runs: the first test computes them."""
        shared, own = self.work_dir / CONSTANTS, run.folder / CONSTANTS
        if shared.is_file() and not own.exists():
            run.folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(shared, own)

    def _finish(self, run: Run, quiet: bool = False) -> None:
        shared, own = self.work_dir / CONSTANTS, run.folder / CONSTANTS
        if own.is_file() and not shared.exists():
            with whole_file(shared) as file:
                file.write(own.read_bytes())
        self._add(rows_of(run, self.config))
        if not quiet:
            self._write()
            _say(f'done: {run.name}')

    def _add(self, rows: Sequence[Row]) -> None:
        """Keeps one row for each run and metric, the first that came, in the order of the plan."""
        kept = {(row.label, row.seed, row.split, row.metric): row for row in (*rows, *self.rows)}
        labels = [contestant.entry.label for contestant in self.contestants]
        order = {label: place for place, label in enumerate([CONSTANT, *labels])}
        self.rows = sorted(
            kept.values(), key=lambda row: (order.get(row.label, len(order)), -1 if row.seed is None else row.seed)
        )

    def _write(self) -> None:
        write_results(self.results, self.rows)


def check_seeds(seeds: Sequence[int]) -> list[int]:
    """``--seeds 3`` is 0, 1, 2; ``--seeds 0 5 7`` are these.

    Raises:
        ValueError: None, a negative one, or one twice.
    """
    if len(seeds) == 1:
        seeds = range(seeds[0])
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ValueError('--seeds: give how many (3 is 0, 1, 2), or several different ones from 0 on (0 5 7)')
    return list(seeds)


def _say(text: str) -> None:
    print(f'{time.strftime("%H:%M:%S")} {text}' if not text.startswith('\n') else text, flush=True)
