"""Asking a run to stop."""

import os
import signal
import threading

import pytest

from latentpg.training.signals import never, stopping

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_and_does_not_kill(number: signal.Signals) -> None:
    said: list[str] = []
    before = signal.getsignal(number)
    with stopping(say=said.append, on_stop=lambda: said.append("on_stop")) as stop:
        assert stop() is None
        os.kill(os.getpid(), number)
        assert stop() == number
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop() == number
    assert said == ["on_stop", "stopping after this update; Ctrl-C once more ends at once"]
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_ends_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stopping():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the second one was not heard")
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_of_the_main_thread_nothing_is_noted() -> None:
    found = []

    def work() -> None:
        with stopping() as stop:
            found.append(stop is never)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [True]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_forked_worker_leaves_it_to_the_process_that_waits_for_it(number: signal.Signals) -> None:
    """A scheduler asks every process of a job; the worker that ended then would be a fault of the update under way."""
    with stopping() as stop:
        worker = os.fork()
        if worker == 0:
            os.kill(os.getpid(), number)
            os._exit(7)  # not reached by one that ends of the signal
        assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == 7
        assert stop() is None
