"""SIGINT and SIGTERM: the first asks the run to save and end, the second ends it at once.

Exit codes, as shells know them: 128 + the signal's number, so 130 for SIGINT, 143 for SIGTERM.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)

# `timeout` and torchrun send one request twice: to the process, and to its group. Two signals
# nearer than this are one.
SAME_REQUEST_SECONDS = 0.3


class Interrupted(BaseException):
    """The run was asked to end; not an Exception, so that nobody's `except` swallows it."""


def exit_code(signum: int) -> int:
    """Return the process's exit code after a signal: 130 for SIGINT, 143 for SIGTERM."""
    return 128 + signum


class Interrupts:
    """While entered, remember the first signal; the one before's handlers come back after.

    Outside of the main thread no handler can be installed, and none is.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._received_at = 0.0
        self._may_abandon = False
        self._owner = os.getpid()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                self._before[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for signum, handler in self._before.items():
            # None: the handler was not installed from Python, and can't be put back from it.
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def check(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self.received is not None:
            raise Interrupted

    @contextmanager
    def abandonable(self) -> Iterator[None]:
        """Mark work that changes no state, such as an evaluation: a signal ends it half-way."""
        self._may_abandon = True
        try:
            self.check()
            yield
        finally:
            self._may_abandon = False

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            # A forked child has this handler too. Ctrl-C reaches it as well, but is the
            # parent's to answer; SIGTERM is how the parent ends it.
            if signum == signal.SIGTERM:
                os._exit(exit_code(signum))
            return
        now = time.monotonic()
        name = signal.Signals(signum).name
        if self.received is None:
            self.received, self._received_at = signal.Signals(signum), now
            _tell(f"{name}: saving, then ending; once more ends at once, without saving")
            if self._may_abandon:
                raise Interrupted
        elif now - self._received_at > SAME_REQUEST_SECONDS:
            _tell(f"{name} again: ending at once, nothing saved")
            os._exit(exit_code(signum))


def leave_signals_to_parent(worker: int) -> None:
    """Make a loader worker deaf to SIGINT, and to each SIGTERM that isn't its parent's.

    A terminal, systemd or Slurm signals every process of the run, and a worker that died of it
    would take the step that is under way with it. The parent's own SIGTERM must work: it is how
    torch ends a worker that doesn't end by itself. It ends with 0, as torch's own handler does:
    at another code torch raises in the parent, which may be about to end the other workers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS doesn't say who sent a signal
        return
    parent = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def end_with_parent() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _tell(message: str) -> None:
    # Not print: a handler may run in the midst of another print to the same stream.
    os.write(2, f"\n{message}\n".encode())
