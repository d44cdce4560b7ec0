"""A comparison as a whole: plan, execution, choice, results."""

import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmengine.logging import print_log

from mmrepmtl.comparison import choice, plan, runs
from mmrepmtl.comparison.agreement import Agreement, check_choices
from mmrepmtl.comparison.collect import rows_of
from mmrepmtl.comparison.entries import parse_options
from mmrepmtl.comparison.execution import Execution, share_out
from mmrepmtl.comparison.locks import FolderLock
from mmrepmtl.comparison.plan import Contestant, Options
from mmrepmtl.comparison.report import write_reports
from mmrepmtl.comparison.results_file import CONSTANT, RESULTS, Row, read_results, write_results
from mmrepmtl.comparison.run_progress import Progress
from mmrepmtl.comparison.runs import Run
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
        select_on: 'val': of an entry with several values only the one that is best on validation data is tested.

    Raises:
        FileNotFoundError: There is no such config or results file.
        ValueError: A method, a sweep or the config is not right, the config or the options have changed since this
            folder was begun, or a results file has a run with another config.
    """

    def __init__(
        self,
        config: str,
        methods: Sequence[str],
        seeds: Sequence[int],
        work_dir: str | os.PathLike,
        options: Options | None = None,
        known: Sequence[str | os.PathLike] = (),
        select_on: str | None = None,
    ) -> None:
        self.config, self.work_dir, self.options = config, Path(work_dir), options or Options()
        self.seeds = check_seeds(seeds)
        self.contestants = plan.load_contestants(config, methods, self.options)
        self.results = self.work_dir / RESULTS
        self._known = list(known)
        self._agreement = Agreement(config, self.options, self.contestants)
        self.rows: list[Row] = []
        self._unchosen = False
        self.choices: dict[str, Any] = plan.read_plan(self.work_dir).get('choices') or {}
        self.sweeps = choice.sweeps_of(self.contestants) if select_on else {}
        check_choices(self.choices, self.sweeps, self.work_dir / plan.PLAN)
        finalists = [one for one in self.contestants if one.entry.group not in self.sweeps]
        self.runs = self._on_validation() if set(self.sweeps) - set(self.choices) else []
        first = {run.folder for run in self.runs}
        self.runs += [run for run in self._make(finalists) if run.folder not in first]
        self.runs = self._checked(self.runs)
        for group in [group for group in self.sweeps if group in self.choices]:
            self.runs += self._final(group)

    def _make(self, contestants: Sequence[Contestant], splits: Sequence[str] = ('test',)) -> list[Run]:
        return runs.make_runs(self.work_dir, contestants, self.seeds, self.options, splits)

    def _on_validation(self) -> list[Run]:
        """The runs that values are chosen by: none of them is tested, apart from equal weighting if that competes."""
        baseline = choice.find_baseline(self.contestants, self.config, self.options)
        values = [one for group, sweep in self.sweeps.items() if group not in self.choices for one in sweep]
        if choice.needs_parts(self.config, self.options):
            return self._make([choice.on_parts(one, self.options) for one in (baseline, *values)], ['val'])
        splits = ['val', 'test'] if baseline in self.contestants else ['val']
        return self._make([baseline], splits) + self._make(values, ['val'])

    def _final(self, group: str) -> list[Run]:
        """The runs of a sweep's chosen value."""
        chosen = self.choices[group]['chosen']
        note = f'the best of {len(self.sweeps[group])} values on the validation data'
        planned = self._make([one for one in self.sweeps[group] if one.entry.label == chosen])
        return self._checked([replace(run, note=note) for run in planned])

    def _checked(self, planned: list[Run]) -> list[Run]:
        """Refuses what has another config; marks what results files have."""
        runs.check_unchanged(planned)
        rows = read_results(self.results) if self.results.is_file() else []
        self._agreement.check_plan(plan.read_plan(self.work_dir), self.work_dir, rows)
        self._agreement.check_rows(rows, self.results)
        planned = runs.mark_known(planned, rows, self.results)
        self._add(rows)
        labels = {run.contestant.entry.label for run in planned}
        for file in self._known:
            rows = read_results(file)
            taken = [row for row in rows if row.label in labels and row.seed in self.seeds]
            self._agreement.check_rows(taken, file)
            planned = runs.mark_known(planned, rows, file)
            # The best constants say nothing of their config: they are those of the runs beside them.
            self._add([row for row in rows if row.label == CONSTANT and taken] + taken)
        return planned

    def plan_lines(self) -> list[str]:
        """Says what :meth:`run` would do, for a person."""
        left = [group for group in self.sweeps if group not in self.choices]
        return runs.plan_lines(self.runs) + [
            f'then the value of {group} that is best on the validation data, with {len(self.seeds)} seeds'
            for group in left
        ]

    def run(
        self,
        jobs: int | None = None,
        device: str = 'auto',
        slurm: str | None = None,
        slurm_options: Sequence[str] = (),
    ) -> int:
        """Trains and tests what is missing and writes the results after each run.

        Args:
            jobs: Runs at once; None: one on this machine, all of them on a cluster.
            device: 'auto', 'cpu' or numbers of GPUs.
            slurm: Partition of a cluster; None: this machine.
            slurm_options: ``key=value`` of submitit's executor.

        Returns:
            0; 1 if a run failed; 128 and the signal if one stopped it.

        Raises:
            ValueError: Another comparison is at work in the folder, it cannot be written to, or there are no such
                resources.
        """
        jobs = jobs if jobs is not None else len(self.runs) if slurm else 1
        resources = share_out(jobs, device, slurm, parse_options(slurm_options))
        check_writable(self.work_dir, 'the work directory')
        lock = FolderLock(self.work_dir)
        try:
            self.runs = self._checked(self.runs)  # another comparison may have ended since this one began
            self._write()
            waiting = sum(len(self.seeds) for group in self.sweeps if group not in self.choices)
            progress = Progress(self.runs, waiting, resources.jobs, lambda: self.rows)
            execution = Execution(self.work_dir, lock, resources, self._prepare, self._finish, progress)
            execution.run([run for run in self.runs if not run.known])
            for group in self.sweeps:
                if group not in self.choices and not execution.stopped and self._choose(group, execution):
                    progress.say(choice.describe(group, self.choices[group]))
                    final = self._final(group)
                    self.runs += final
                    progress.add(final)
                    execution.run([run for run in final if not run.known])
            progress.close()
        finally:
            lock.release()
        return self._end(execution)

    def _choose(self, group: str, execution: Execution) -> bool:
        labels = {one.entry.label for one in self.sweeps[group]} | {choice.BASELINE}
        failed = [run for run in execution.failed if run.contestant.entry.label in labels]
        if failed:
            execution.progress.say(f'{group}: nothing can be chosen before {failed[0].name} is done')
            return False
        try:
            self.choices[group] = choice.choose(self.sweeps[group], self.seeds, self.rows)
        except ValueError as error:  # the numbers do not carry a choice; the report is written all the same
            execution.progress.say(str(error))
            self._unchosen = True
            return False
        self._write()
        return True

    def _end(self, execution: Execution) -> int:
        if execution.stopped:
            return 128 + execution.stopped
        written = [self.results]
        if any(row.split == 'test' for row in self.rows):
            written += write_reports(self.work_dir, self.rows)
        print(f'written: {" ".join(map(str, written))}')
        if execution.failed:
            print(f'{len(execution.failed)} of {len(self.runs)} runs failed; the same command tries them again')
        return 1 if execution.failed or self._unchosen else 0

    def _prepare(self, run: Run) -> None:
        """The best constants are the same for all runs: the first test computes them."""
        shared, own = self.work_dir / CONSTANTS, run.folder / CONSTANTS
        if shared.is_file() and not own.exists():
            run.folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(shared, own)

    def _finish(self, run: Run) -> None:
        shared, own = self.work_dir / CONSTANTS, run.folder / CONSTANTS
        if own.is_file() and not shared.exists():
            with whole_file(shared) as file:
                file.write(own.read_bytes())
        self._add(rows_of(run, self.config))
        self._write()
        if any(row.split == 'test' for row in self.rows):
            try:
                write_reports(self.work_dir, self.rows, pictures=False)
            except Exception as error:  # the runs go on; at the end it is raised
                print_log(f'{self.work_dir}: the report is not written now: {error!r}', 'current', logging.WARNING)

    def _add(self, rows: Sequence[Row]) -> None:
        """Keeps the rows of each run that came last, in the order of the plan: a metric that they lack is gone."""
        kept: dict[tuple, dict[str, Row]] = {}
        for some in (self.rows, rows):
            new: dict[tuple, dict[str, Row]] = {}
            for row in some:
                new.setdefault((row.label, row.seed, row.split), {})[row.metric] = row
            kept |= new
        labels = [contestant.entry.label for contestant in self.contestants]
        order = {label: place for place, label in enumerate([CONSTANT, *labels])}
        self.rows = sorted(
            (row for run in kept.values() for row in run.values()),
            key=lambda row: (order.get(row.label, len(order)), -1 if row.seed is None else row.seed),
        )

    def _write(self) -> None:
        plan.write_plan(self.work_dir, self.config, self.contestants, self.seeds, self.options, self.choices)
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
