"""Files of registered pairs, written in a thread while the next pair is computed; a pair is there whole or not at all."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from nnssl_reg.imageio.json_files import atomic_path


class PairWriter:
    """One thread that writes one pair at a time; `done` hears of each when it is over. Use it in a with statement.

    done: called in the thread of the caller with the pair's name, and the value or the exception.
    """

    def __init__(self, done: Callable[[str, Any], None]):
        self._done = done
        self._thread = ThreadPoolExecutor(1, "writer")
        self._pending: tuple[str, Future] | None = None

    def __enter__(self) -> "PairWriter":
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None:
            self.finish()
        self._thread.shutdown(wait=True)  # after Ctrl-C too: a pair that is computed gets written

    def write(self, name: str, function: Callable, *arguments) -> None:
        """Have function(*arguments) write a pair, once the last pair is written."""
        self.finish()
        self._pending = name, self._thread.submit(function, *arguments)

    def finish(self) -> None:
        """Wait for the pair that is being written."""
        if self._pending is not None:
            (name, future), self._pending = self._pending, None
            error = future.exception()
            self._done(name, future.result() if error is None else error)


def write_whole(folder: Path, name: str, write: Callable[[Path], Any]) -> Any:
    """write(beside) puts the files of a pair into an empty folder; then they move to `folder`, the sidecar NAME.json last.

    After an error nothing of them stays. A sidecar of an earlier run goes before its files are replaced.
    """
    sidecar = folder / f"{name}.json"
    with atomic_path(sidecar) as beside:
        value = write(beside.parent)
        sidecar.unlink(missing_ok=True)
    return value
