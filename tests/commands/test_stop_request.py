"""StopRequest: a signal or the time asks for the end, nothing is interrupted."""

import os
import signal

import pytest

from nnssl_reg.commands.stop_request import StopRequest


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_noted_and_becomes_the_exit_code(number, code):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop and stop.exit_code == 0
        os.kill(os.getpid(), number)
        assert stop and stop.exit_code == code
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_interrupts_at_once():
    with pytest.raises(KeyboardInterrupt), StopRequest():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_the_time_limit_asks_for_the_end_without_an_error_code():
    with StopRequest(minutes=0) as stop:
        assert stop and stop.exit_code == 0
    assert not StopRequest(minutes=1)
