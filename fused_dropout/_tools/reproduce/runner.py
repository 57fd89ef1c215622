"""Runs the settings of an experiment with several seeds, one process for each processor.

A run has one thread and a seed of its own for torch's generator, so what it finds does not depend
on how many run beside it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing.queues import Queue
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fused_dropout._tools.common import thread_count
from fused_dropout._tools.reproduce import data
from fused_dropout._tools.reproduce.experiment import Job, Measured
from fused_dropout._tools.reproduce.experiments import find_experiment

_SECONDS_BETWEEN_LOOKS = 0.2
_SECONDS_BETWEEN_REPORTS = 0.25
_SECONDS_BETWEEN_LINES = 30.0  # in a log

Report = tuple[str, int, float]  # experiment, place of the run among its tasks, share done

_reports: Any = None  # in a worker: the queue of reports


class Task(NamedTuple):
    """One run, in a form that reaches another process."""

    experiment: str
    setting: int
    seed: int
    budget: str
    data: str  # its kind, "" for none
    folder: str | None


class Runner:
    """Runs tasks: in other processes, or in this one if it is to use one process."""

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self._executor: ProcessPoolExecutor | None = None
        if processes > 1:
            context = multiprocessing.get_context("spawn")
            self._queue: Queue[Report] = context.Queue()
            self._executor = ProcessPoolExecutor(
                processes, mp_context=context, initializer=_start_worker, initargs=(self._queue,)
            )

    def run(self, tasks: Sequence[Task], console: Console) -> list[Measured]:
        """What each task found, with the progress of all on the console."""
        title = tasks[0].experiment
        with _progress(console, title, len(tasks)) as show:
            if self._executor is None:
                return [self._run_here(task, place, show) for place, task in enumerate(tasks)]
            futures = [
                self._executor.submit(_run_in_worker, place, task)
                for place, task in enumerate(tasks)
            ]
            self._watch(title, futures, show)
            return [future.result() for future in futures]

    def close(self) -> None:
        """Stop the processes, also in the middle of their work."""
        if self._executor is not None:
            for process in multiprocessing.active_children():
                process.terminate()
            self._executor.shutdown(wait=False, cancel_futures=True)

    def _watch(self, title: str, futures: Sequence[Future[Measured]], show: _Shares) -> None:
        pending = set(futures)
        while pending:
            done, pending = wait(pending, _SECONDS_BETWEEN_LOOKS, return_when="FIRST_EXCEPTION")
            for future in done:
                future.result()  # raises what the run raised
            while not self._queue.empty():
                experiment, place, share = self._queue.get()
                if experiment == title:  # the last reports of the one before may come late
                    show.update(place, share)

    @staticmethod
    def _run_here(task: Task, place: int, show: _Shares) -> Measured:
        with thread_count(1), torch.random.fork_rng(devices=()):
            return _run(task, lambda share: show.update(place, share))


def default_processes() -> int:
    """One for each processor that this process may use."""
    return len(os.sched_getaffinity(0))


def _start_worker(reports: Queue[Report]) -> None:
    global _reports
    _reports = reports
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    torch.set_num_threads(1)


def _run_in_worker(place: int, task: Task) -> Measured:
    last = 0.0

    def report(share: float) -> None:
        nonlocal last
        now = time.monotonic()
        if share >= 1.0 or now - last > _SECONDS_BETWEEN_REPORTS:
            last = now
            _reports.put((task.experiment, place, share))

    return _run(task, report)


def _run(task: Task, report: Any) -> Measured:
    experiment = find_experiment(task.experiment)
    budget = experiment.budget(task.budget)
    images = data.load(task.data, task.folder) if task.data else None
    if images is not None:
        images = images.part(budget.examples, task.seed)
    options = experiment.settings[task.setting].options
    torch.manual_seed(task.seed)
    measured = experiment.run(Job(options, task.seed, budget, report, images))
    report(1.0)
    return measured


class _Shares:
    """How much of every run is done."""

    def __init__(self, runs: int) -> None:
        self.shares = [0.0] * runs

    def update(self, place: int, share: float) -> None:
        self.shares[place] = share
        self.changed(sum(self.shares))

    def changed(self, done: float) -> None:
        """Shows it."""


class _Bar(_Shares):
    def __init__(self, runs: int, progress: Progress, title: str) -> None:
        super().__init__(runs)
        self.progress, self.bar = progress, progress.add_task(title, total=runs)

    def changed(self, done: float) -> None:
        self.progress.update(self.bar, completed=done)


class _Lines(_Shares):
    def __init__(self, runs: int, console: Console, title: str) -> None:
        super().__init__(runs)
        self.console, self.title = console, title
        self.start = self.last = time.monotonic()

    def changed(self, done: float) -> None:
        now = time.monotonic()
        if done > 0 and now - self.last >= _SECONDS_BETWEEN_LINES:
            self.last = now
            left = (now - self.start) * (len(self.shares) / done - 1.0)
            self.console.print(
                f"{self.title}: {done:.1f} of {len(self.shares)} runs, {left:.0f} s left",
                highlight=False,
            )


@contextmanager
def _progress(console: Console, title: str, runs: int) -> Iterator[_Shares]:
    """A bar on a terminal, a line now and then in a log."""
    if not console.is_terminal:
        yield _Lines(runs, console, title)
        return
    columns = (
        TextColumn("{task.description:15}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.1f} of {task.total:.0f} runs,"),
        TimeElapsedColumn(),
        TextColumn("taken,"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=console) as progress:
        yield _Bar(runs, progress, title)
