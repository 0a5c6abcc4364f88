"""The benchmark of peers: what its rows say, and that it says what to install. Nothing here is timed."""

import sys
from argparse import Namespace

import pytest

from benchmarks import peers
from benchmarks.peers import Pair, Turn


def test_a_row_has_medians_and_the_median_of_the_ratios_of_neighbouring_turns(capsys):
    pair = Pair("Net", 7, {"mmfast": None, "other": None}, {})
    turns = {
        ("Net", "mmfast"): [Turn(1.0, 0.5), Turn(10.0, 0.4), Turn(2.0, 0.3)],
        ("Net", "other"): [Turn(2.0, 0.5), Turn(40.0, 0.2), Turn(6.0, 0.6)],
        ("Another", "mmfast"): [Turn(9.0, 9.0)] * 3,
    }
    ours, theirs = peers.compared("train", pair, turns, Namespace(size=16, batch=4, threads=2))
    assert (ours["by"], ours["wall_ms"], ours["wall_times_mmfast"], ours["cpu_times_mmfast"]) == ("mmfast", 2e3, 1, 1)
    # Ratios of 2, 4 and 3 by the clock, and of 1, 0.5 and 2 in processor time.
    assert (theirs["wall_ms"], theirs["cpu_ms"]) == (6e3, 500.0)
    assert (theirs["wall_times_mmfast"], theirs["cpu_times_mmfast"]) == (3.0, 1.0)
    assert (theirs["parameters"], theirs["turns"], theirs["batch"], theirs["threads"]) == (7, 3, 4, 2)


def test_jobs_take_turns_and_the_warm_ones_do_not_count():
    done = []
    jobs = {("Net", who): lambda who=who: done.append(who) for who in ("a", "b", "c")}
    turns = peers.alternate(jobs, rounds=3, warm=1)
    # Each round begins with another, so that none always follows the same one.
    assert "".join(done) == "bca" + "cab" + "abc" + "bca"
    assert [len(x) for x in turns.values()] == [3, 3, 3]


def test_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(peers, "with_warm_allocator", lambda name: None)
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["peers"])
    with pytest.raises(SystemExit):
        peers.main()
    assert "accelerate is not installed: pip install 'mmfast[peers]'" in capsys.readouterr().err
