"""DaskPool: run a function over cases on the workers of a Dask cluster, which see the same folders as this machine."""

import socket
import time
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version

from nnssl_reg.commands.case_pool import HEARTBEAT_SECONDS, CasePool, Outcome, Pool, Result, Task, call, outcome_of

CONNECT_SECONDS = 10.0
WORKERS_SECONDS = 60.0
LOOK_SECONDS = 0.1


def pool_for(processes: int | None, address: str | None, progress: bool) -> Pool:
    """The workers of the Dask scheduler at address, if there is one, else `processes` of this machine (see CasePool)."""
    if address is None:
        return CasePool(processes, progress)
    if processes is not None:
        raise ValueError(f"-np and -npfp count processes of this machine, with --dask {address} the workers do the work: leave "
                         "them out.")  # fmt: skip
    return DaskPool(address, progress)


class DaskPool(Pool):
    """Cases go to whichever worker is free; those of a worker that is lost go to another. Use it in a with statement.

    address: of the scheduler, as tcp://host:8786. Raises ModuleNotFoundError without the extra `dask`, ConnectionError where
    no scheduler or no worker answers, and ValueError if the workers have another version or do several cases at a time.
    """

    def __init__(self, address: str, progress: bool = True):
        super().__init__(progress)
        self._client = _connected(address)
        try:
            self._most_bytes = _checked(self._client, address)
        except BaseException:
            self._client.close()
            raise

    def _refusal(self, task: Task) -> str | None:
        if task.bytes <= self._most_bytes:
            return None
        most = f"no worker may take more than {self._most_bytes / 1e9:.1f} GB"
        return f"it needs about {task.bytes / 1e9:.1f} GB of memory, {most}. Start one with a larger --memory-limit."

    def _outcomes(self, function, tasks: list[Task]) -> Iterator[tuple[Outcome, list[str]]]:
        """As they come. Dask blames a lost worker on all cases that it had, so these are tried again one by one."""
        suspects = []
        for task, result in self._results(function, tasks):
            if result is None:
                suspects.append(task)
            else:
                yield outcome_of(task, result)
        for task in suspects:
            for _, result in self._results(function, [task]):
                if result is None:
                    need = f"about {task.bytes / 1e9:.1f} GB were predicted"
                    yield (
                        Outcome(task, error=f"the workers that had it were killed, most often for want of memory ({need})"),
                        [],
                    )
                else:
                    yield outcome_of(task, result)

    def _results(self, function, tasks: list[Task]) -> Iterator[tuple[Task, Result | None]]:
        """Tasks as they are done, without a result where too many workers were lost that had it."""
        from distributed import as_completed

        futures = self._client.map(partial(_call, function), [task.argument for task in tasks], pure=False)
        task_of = {future.key: task for future, task in zip(futures, tasks)}
        ready, looked = as_completed(futures, loop=self._client.loop), time.monotonic()
        while not ready.is_empty():
            for future in ready.next_batch(block=False):
                if future.status == "finished":
                    yield task_of[future.key], future.result()
                elif future.status == "error":
                    yield task_of[future.key], None
                elif future.status == "cancelled":
                    raise ConnectionError("The Dask scheduler is gone. Run the same command again: what is done is kept.")
                else:
                    ready.add(future)  # the worker was lost with its result, so another one does the case again
            if time.monotonic() - looked > HEARTBEAT_SECONDS:
                looked = time.monotonic()
                self._bar.set_postfix_str(f"{len(self._client.nthreads())} workers")
            time.sleep(LOOK_SECONDS)

    def _stop(self, kill: bool = False) -> None:
        self._client.close()  # the scheduler forgets what only this client wanted


def _connected(address: str):
    """A client of the scheduler at address."""
    try:
        from distributed import Client
    except ModuleNotFoundError:
        raise ModuleNotFoundError("--dask needs Dask's distributed: pip install 'nnssl_reg[dask]'") from None
    try:
        return Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConnectionError(f"No Dask scheduler answers at {address} ({error}). Start one with `dask scheduler`, which says "
                              "its address.") from None  # fmt: skip


def _checked(client, address: str) -> float:
    """Bytes that the largest worker may take, if the workers can do the work."""
    from distributed import TimeoutError as NoWorkers

    try:
        client.wait_for_workers(1, timeout=WORKERS_SECONDS)
    except NoWorkers:
        raise ConnectionError(f"The Dask scheduler at {address} has no workers. Start some with `dask worker {address} "
                              "--nthreads 1`.") from None  # fmt: skip
    try:
        facts = client.run(worker_facts)
    except ModuleNotFoundError as error:
        raise ValueError(f"The Dask workers of {address} cannot import what they need: {error}. Install nnssl_reg "
                         f"{version('nnssl_reg')} in their environment.") from None  # fmt: skip
    for worker, (theirs, threads, _) in facts.items():
        if theirs != version("nnssl_reg"):
            raise ValueError(f"The Dask worker {worker} has nnssl_reg {theirs}, here it is {version('nnssl_reg')}: install the "
                             "same in both environments.")  # fmt: skip
        if threads != 1:
            raise ValueError(f"The Dask worker {worker} does {threads} cases at a time in one process; start workers with "
                             "--nthreads 1, and as many as there are cores with --nworkers.")  # fmt: skip
    return max(limit for _, _, limit in facts.values())


def worker_facts(dask_worker) -> tuple[str, int, float]:
    """On a worker, which Dask passes in: the version of nnssl_reg, cases it does at a time, bytes it may take."""
    limit = dask_worker.memory_manager.memory_limit
    return version("nnssl_reg"), dask_worker.state.nthreads, float(limit) if limit else float("inf")


def _call(function, argument) -> Result:
    """On a worker: as `call`; an error says where, for a folder may be missing on one machine only."""
    value, error, trace, said = call(function, argument)
    return value, error and f"{error} (on {socket.gethostname()})", trace, said
