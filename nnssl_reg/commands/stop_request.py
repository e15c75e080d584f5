"""StopRequest: signals and a time limit, asked for between steps so that work can be saved first."""

import signal
import time


class StopRequest:
    """Within `with`, Ctrl-C and SIGTERM only set `reason`; a second Ctrl-C interrupts at once. minutes: a limit, or None."""

    def __init__(self, minutes: float | None = None):
        self.ends = None if minutes is None else time.monotonic() + 60 * minutes
        self.signal: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        """Whether to stop now."""
        return self.signal is not None or (self.ends is not None and time.monotonic() >= self.ends)

    @property
    def exit_code(self) -> int:
        """What the shell gets: 128 + the signal, as it would from a killed process; 0 where the time was up."""
        return 0 if self.signal is None else 128 + self.signal

    def _note(self, number: int, _) -> None:
        if self.signal == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.signal = number
