"""The ``latentpg`` command in a forked process: all of a start but the import, so that tests can afford dozens."""

import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot  # noqa: F401 (imported here, so that no forked process has to)
import pyarrow.parquet  # noqa: F401 (the same)

from latentpg import cli
from tests.training.runs import no_figure


@dataclass(frozen=True)
class Command:
    """A command that goes on in a session of its own, and the file that both its streams go to."""

    pid: int
    told: Path

    def wait(self, seconds: float = 60.0) -> int:
        """Wait until it ends and return its exit status, or less than zero for the signal that killed it."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        left = members(self.pid)
        os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise AssertionError(f"it did not end in {seconds} s; processes {left}; it said:\n{self.text()}")

    def has_ended(self) -> bool:
        """Tell whether it has; :meth:`wait` still says how."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def text(self) -> str:
        """Return all it has said so far."""
        return self.told.read_text(encoding="utf-8", errors="replace")

    def send(self, number: int, *, to_all: bool = False) -> None:
        """Send a signal to the command, or to all processes of its session, as a terminal does."""
        os.killpg(self.pid, number) if to_all else os.kill(self.pid, number)

    def leaves_no_process(self, seconds: float = 10.0) -> bool:
        """Tell whether every process that it started has ended."""
        deadline = time.monotonic() + seconds
        while members(self.pid):
            if time.monotonic() > deadline:
                os.killpg(self.pid, signal.SIGKILL)
                return False
            time.sleep(0.02)
        return True


def start(*words: str, told: Path, before: Callable[[], object] = lambda: None) -> Command:
    """Run ``latentpg WORDS`` in a forked process, after ``before()``; ``told`` is where its output goes."""
    told.touch()
    pid = os.fork()
    if pid:
        return Command(pid, told)
    status = 70
    try:
        os.setsid()
        handle = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        before()
        sys.argv = ["latentpg", *words]
        status = cli.main()
    except SystemExit as leave:
        status = leave.code if isinstance(leave.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def ended(
    *words: str, told: Path, before: Callable[[], object] = lambda: None, seconds: float = 60.0
) -> tuple[int, str]:
    """Run a command to its end, and return its exit status and what it said."""
    command = start(*words, told=told, before=before)
    status = command.wait(seconds)
    text = command.text()
    assert "Traceback" not in text, text
    return status, text


def quick() -> None:
    """Draw no figure at the end of a run: that is half the time of a short one."""
    setattr(sys.modules["latentpg.training.loop"], "draw_curve", no_figure)  # noqa: B010 (not exported, by design)


def members(session: int) -> list[int]:
    """Return every living process of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):  # it has just ended
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if entry.name.isdigit() and fields[0] != "Z" and int(fields[3]) == session:
                found.append(int(entry.name))
    return found


def until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def without_rights() -> None:
    """Go on as a user whom permissions bind: root's own rights are given up, and it may write everywhere with them."""
    if os.geteuid() == 0:
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # the version of the two structures that follow, and this process
        assert ctypes.CDLL(None).capset(header, (ctypes.c_uint32 * 6)()) == 0
