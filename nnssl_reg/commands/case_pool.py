"""CasePool: run a function over cases in processes, as many as memory allows, where no case can take the others down."""

import logging
import multiprocessing
import os
import signal
import threading
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for_end
from typing import Any

import torch
from tqdm import tqdm

from nnssl_reg.commands.machine import free_memory, usable_cores

log = logging.getLogger("nnssl_reg")

SHARE_OF_FREE_MEMORY = 0.8
HEARTBEAT_SECONDS = 2.0  # the progress bar's clock moves even when a case takes long
SHOWN_MESSAGES = 10


@dataclass(frozen=True)
class Task:
    """One case to work on.

    argument: what the function gets, picklable; bytes: predicted peak of a process that does it; way_out: what to do where
    that is more than is free.
    """

    name: str
    argument: Any
    bytes: float
    way_out: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of a task: a value, or the reason why there is none."""

    task: Task
    value: Any = None
    error: str | None = None


# of a case in a worker: the value, or the error and its traceback; and what was logged on the way
Result = tuple[Any, str | None, str | None, list[str]]


class Pool(ABC):
    """Whatever works on cases, with a progress bar. Use it in a with statement."""

    def __init__(self, progress: bool):
        self.progress = progress

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, kind, *_) -> None:
        self._stop(kill=kind is not None)

    def run(self, function: Callable[[Any], Any], tasks: list[Task], title: str) -> list[Outcome]:
        """function(task.argument) for every task; outcomes in the order of the tasks. Errors are outcomes, not raised."""
        outcomes = {task.name: (Outcome(task, error=said), []) for task in tasks if (said := self._refusal(task))}
        found = self._outcomes(function, [task for task in tasks if task.name not in outcomes])
        with tqdm(
            total=len(tasks), initial=len(outcomes), desc=title, unit="case", mininterval=0.5, disable=not self.progress
        ) as bar:
            self._bar = bar
            for outcome, said in found:
                outcomes[outcome.task.name] = (outcome, said)
                bar.update()
        _report([message for task in tasks for message in outcomes[task.name][1]])
        return [outcomes[task.name][0] for task in tasks]

    @abstractmethod
    def _refusal(self, task: Task) -> str | None:
        """The reason not to start on a task that needs more memory than there is, else None."""

    @abstractmethod
    def _outcomes(self, function, tasks: list[Task]) -> Iterator[tuple[Outcome, list[str]]]:
        """Outcomes as they come, in any order, and what the cases had to say."""

    @abstractmethod
    def _stop(self, kill: bool = False) -> None:
        """End the workers; kill: at once."""


class CasePool(Pool):
    """Processes that outlive a step, so that the next one need not import torch again.

    processes: at most; None: as many as there are cores; 0: none, the work is done in this process.
    """

    def __init__(self, processes: int | None, progress: bool = True):
        super().__init__(progress)
        if processes is not None and processes < 0:
            raise ValueError(f"The number of processes is at least 0 (0: this process does the work), got {processes}.")
        self.most = usable_cores() if processes is None else processes
        self._executor: ProcessPoolExecutor | None = None
        self._size = 0

    def _refusal(self, task: Task) -> str | None:
        free = free_memory()
        if task.bytes <= free:
            return None
        return f"it needs about {task.bytes / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free. {task.way_out}".rstrip()

    def _outcomes(self, function, tasks: list[Task]) -> Iterator[tuple[Outcome, list[str]]]:
        """As they come. When a process is killed, the cases it may have been working on are tried one by one."""
        if self.most == 0:
            yield from (outcome_of(task, call(function, task.argument)) for task in tasks)
            return
        workers = self._start(tasks)
        waiting, running = deque(tasks), {}
        while waiting or running:
            suspects = []
            try:
                while waiting and len(running) < workers:
                    running[self._executor.submit(call, function, waiting[0].argument)] = waiting[0]
                    waiting.popleft()
            except BrokenProcessPool:
                pass  # then the running ones say so, below
            done, _ = wait(running, HEARTBEAT_SECONDS, FIRST_COMPLETED)
            if not done:
                self._bar.refresh()
            for future in done:
                task = running.pop(future)
                if isinstance(future.exception(), BrokenProcessPool):
                    suspects.append(task)
                else:
                    yield outcome_of(task, future.result())
            if suspects:
                suspects += [running.pop(future) for future in list(running)]
                for task in suspects:
                    yield self._alone(function, task)
                workers = self._start(tasks)

    def _alone(self, function, task: Task) -> tuple[Outcome, list[str]]:
        """A task in a process of its own, so that its end can be blamed on nothing else."""
        self._stop(kill=True)
        with _executor(1) as executor:
            future: Future = executor.submit(call, function, task.argument)
            try:
                return outcome_of(task, future.result())
            except BrokenProcessPool:
                need = f"about {task.bytes / 1e9:.1f} GB were predicted, {free_memory() / 1e9:.1f} GB are free now"
                return Outcome(task, error=f"the process working on it was killed, most often for want of memory ({need})"), []

    def _start(self, tasks: list[Task]) -> int:
        """Have as many processes as cores and memory allow; returns their number. They start when there is work for them."""
        workers = workers_for(tasks, self.most)
        if self._executor is None or self._size != workers:
            self._stop()
            self._executor, self._size = _executor(workers), workers
        return workers

    def _stop(self, kill: bool = False) -> None:
        if self._executor is None:
            return
        processes = list((self._executor._processes or {}).values()) if kill else []
        for process in processes:
            process.kill()
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._executor = None


def workers_for(tasks: list[Task], most: int) -> int:
    """Processes that tasks of this size may have, at least one."""
    largest = max((task.bytes for task in tasks), default=1.0)
    return max(1, min(most, int(SHARE_OF_FREE_MEMORY * free_memory() / largest)))


def _executor(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_prepare_worker)


def _prepare_worker() -> None:
    """In a worker: one thread, Ctrl-C is the parent's affair, and an end when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed cannot stop its workers, and they would wait for work for ever."""
    wait_for_end([multiprocessing.parent_process().sentinel])
    os._exit(1)


def call(function, argument) -> Result:
    """In a worker: function(argument), without raising."""
    with collected_messages() as said:
        try:
            return function(argument), None, None, said
        except (ValueError, OSError) as error:
            return None, str(error), traceback.format_exc(), said
        except Exception as error:  # a case that meets a mistake of ours must not take the others down either
            return None, f"{type(error).__name__}: {error}", traceback.format_exc(), said


@contextmanager
def collected_messages() -> Iterator[list[str]]:
    """Messages of the package's logger go to the list instead of the console."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    propagate, log.propagate = log.propagate, False
    log.addHandler(handler)
    try:
        yield said
    finally:
        log.removeHandler(handler)
        log.propagate = propagate


def outcome_of(task: Task, result: Result) -> tuple[Outcome, list[str]]:
    """The outcome that a `Result` tells, and what the case had to say."""
    value, error, trace, said = result
    if trace is not None:
        log.info("%s: %s", task.name, trace)
    return Outcome(task, value, error), said


def _report(messages: list[str]) -> None:
    """What the cases had to say, the first few of it unless --verbose asks for all."""
    shown = len(messages) if log.isEnabledFor(logging.INFO) else SHOWN_MESSAGES
    for message in messages[:shown]:
        log.warning("%s", message)
    if len(messages) > shown:
        log.warning("... and %d more messages about cases (--verbose shows all).", len(messages) - shown)
