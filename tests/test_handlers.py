"""The signals that ask to stop: which they are, who answers them meanwhile, and who does afterwards."""

import signal
import threading

import pytest

from mmfast import signals

HANGUP = getattr(signal, "SIGHUP", None)
BOTH = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture(autouse=True)
def as_before():
    before = {number: signal.getsignal(number) for number in (*BOTH, *([HANGUP] if HANGUP else []))}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.skipif(HANGUP is None, reason="no SIGHUP on this system")
def test_under_nohup_a_terminal_that_closes_asks_nothing(monkeypatch):
    signal.signal(HANGUP, signal.SIG_IGN)
    assert signals.asking() == BOTH
    signal.signal(HANGUP, signal.SIG_DFL)
    assert signals.asking() == [*BOTH, HANGUP]
    monkeypatch.setattr(signals, "HANGUP", None)  # as on Windows
    assert signals.asking() == BOTH


def test_a_handler_is_there_meanwhile_and_in_the_main_thread_alone():
    heard, before = [], {number: signal.getsignal(number) for number in BOTH}

    def answer(number, frame):
        heard.append(number)

    with pytest.raises(KeyError), signals.answered(answer):
        for number in BOTH:
            assert signal.getsignal(number) is answer
            signal.raise_signal(number)
        raise KeyError
    assert heard == BOTH and {number: signal.getsignal(number) for number in BOTH} == before

    def elsewhere():
        with signals.answered(answer):
            heard.append([signal.getsignal(number) for number in BOTH])

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert heard[2:] == [[*before.values()]]


def test_in_the_end_they_end_the_process():
    signals.end_at_once()
    assert all(signal.getsignal(number) is signal.SIG_DFL for number in signals.asking())
