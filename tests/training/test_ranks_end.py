"""How ranks end: a signal, an error or a death of one of them ends all, with one line that says why."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch.distributed as dist
from processes import Job
from rank_runs import assert_one_curve, command, killed, stats, stopping

from mmfast.cli import main
from mmfast.errors import MmfastError
from mmfast.files import load_tensors
from mmfast.ranks import arrival, watch


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_after_the_step_in_hand(tmp_path):
    run = tmp_path / "run"
    job = Job(2, tmp_path, stopping, 7, command(run, 100))
    assert job.wait() == [130, 130]
    assert load_tensors(run / "trainer.safetensors")[1]["step"] == 7 == len(stats(run))
    first, second = job.said()
    assert first == "mmfast: stopped; repeat the `mmfast train` command to resume\n" and second == ""


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_dies_ends_all_and_is_named(tmp_path, rank):
    run = tmp_path / "run"
    job = Job(2, tmp_path, killed, rank, command(run, 100, train__checkpoint_every=3))
    assert job.wait(60)[1 - rank] == 1 and job.processes[rank].exitcode == -signal.SIGKILL
    said = job.said()[1 - rank].splitlines()
    name = f"process {job.processes[rank].pid}"
    (line,) = [line for line in said if line.startswith("mmfast: ")]
    assert line.startswith(f"mmfast: rank {rank} of 2 (") and f"{name}) has died" in line
    assert load_tensors(run / "trainer.safetensors")[1]["step"] == 6


def dying(rank, before, argv):
    """The command, of which a rank dies while all meet: before it calls this function of torch.distributed."""
    import torch.distributed as dist

    function, arrival.LATE = getattr(dist, before), 1.5

    def dies(*args, **options):
        if os.environ["RANK"] == str(rank):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **options)

    setattr(dist, before, dies)
    return main(argv)


@pytest.mark.slow
@pytest.mark.parametrize("before", ["init_process_group", "all_gather_object", "new_group"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_dies_while_they_meet_ends_all_and_is_named(tmp_path, rank, before):
    run = tmp_path / "run"
    job = Job(3, tmp_path, dying, rank, before, command(run, 3))
    status = job.wait(60)
    assert status.pop(rank) == -signal.SIGKILL and status == [1, 1]
    said = [line for text in job.said() for line in text.splitlines() if line.startswith("mmfast: ")]
    assert len(said) == 1 and said[0].startswith(f"mmfast: rank {rank} of 3 ") and " has died, so all ranks" in said[0]
    # What the first is called they may not have heard yet.
    assert rank == 0 or f"process {job.processes[rank].pid}) has died" in said[0]
    assert not run.exists()


class Ended(BaseException):
    """In the place of the end of the process."""


@pytest.mark.parametrize("index", [0, 1])
def test_who_has_said_nothing_for_too_long_is_dead(index, monkeypatch, capsys):
    """One that speaks, has met all, or has not come yet is not."""
    now, store, beats, slept = [0.0], dist.HashStore(), iter(range(100)), []
    monkeypatch.setattr(arrival.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(arrival.time, "sleep", slept.append)

    def ends(status):
        assert status == 1 and slept == [arrival.SEEN]  # torchrun sees first which process has died
        raise Ended

    monkeypatch.setattr(arrival, "end", ends)
    here = arrival.Arrival(index, 5, "this machine, process 5", lambda: store)
    dead = 3 if index == 0 else 0
    store.set(str(dead), "0 that machine, process 7")
    if index == 0:
        store.set("2", arrival.MET)
    here.store = store

    def pause(seconds):
        now[0] += seconds
        if index == 0:
            store.set("1", f"{next(beats)} another machine")
        return False

    monkeypatch.setattr(here.left, "wait", pause)
    with pytest.raises(Ended):
        here._watch()
    assert now[0] == pytest.approx(arrival.LATE + 2 * arrival.BEAT)  # the first word, and the first that is too late
    said = capsys.readouterr().err
    assert said.startswith(f"mmfast: rank {dead} of 5 (that machine, process 7) has died, so all ranks end;")
    assert store.check([arrival.OVER]) is (index == 0)


def test_a_rank_says_again_and_again_that_it_is_there(monkeypatch):
    store, words, until = dist.HashStore(), set(), time.monotonic() + 30
    monkeypatch.setattr(arrival, "BEAT", 0.01)
    with arrival.Arrival(1, 2, "here", lambda: store):
        while len(words) < 3 and time.monotonic() < until:
            words.add(store.get("1"))
    assert len(words) == 3 and all(word.endswith(b" here") for word in words)


class Broken(RuntimeError):
    """A kind of its own of a transfer that failed, as torch has some."""


@pytest.mark.parametrize("error, last", [(None, arrival.MET), (ValueError, b"0 here"), (Broken, b"0 here")])
def test_how_a_rank_leaves_the_others_while_they_meet(monkeypatch, error, last):
    """With a last word if it has met them; and after a failed transfer not before the watch has had its time."""
    store, waited, join = dist.HashStore(), [], threading.Thread.join

    def joined(thread, *seconds):
        waited.append(seconds)
        join(thread, *(0.0 for _ in seconds))

    monkeypatch.setattr(arrival, "BEAT", 30.0)
    monkeypatch.setattr(arrival.threading.Thread, "join", joined)
    with contextlib.suppress(*([error] if error else [])), arrival.Arrival(1, 2, "here", lambda: store):
        assert store.get("1") == b"0 here"
        if error:
            raise error
    assert waited == ([(arrival.LATE + arrival.EXPLAINED,), ()] if error is Broken else [()])
    assert store.get("1") == last


@pytest.mark.parametrize("index, peers", [(0, [1, 2]), (1, [0]), (2, [0])])
def test_who_listens_to_whom_and_what_the_first_tells(monkeypatch, index, peers):
    """The first rank listens to all, and they to it; it tells them the status that they are to end with."""
    listening, told = [], []
    monkeypatch.setattr(watch.dist, "new_group", lambda **options: "group")
    monkeypatch.setattr(watch.Watch, "_listen", lambda self, peer: listening.append(peer))
    monkeypatch.setattr(watch.Watch, "_tell", lambda self, *message, **text: told.append((*message, *text.values())))
    here = watch.Watch(index, ["a", "b", "c"])
    here.wait(None)
    assert sorted(listening) == peers
    monkeypatch.setattr(here, "wait", told.append)
    assert [here.leave(watch.FAILED, "damaged", patience) for patience in (10.0, None)] == [False, True]
    all_told = [(1, watch.END, 2), (2, watch.END, 2)]
    by_one = [(0, watch.FAILED, "damaged")]
    # Once told, they are waited for: a listener that still waited would abort this process.
    by_first = [watch.BY_ITSELF, *all_told, watch.EXPLAINED, None, *all_told, watch.EXPLAINED]
    assert told == (by_first if index == 0 else [*by_one, 10.0, *by_one, None])
    told.clear()
    for how in (watch.BYE, watch.STOPPED, watch.FAILED, watch.DIED):
        here._tell_all(how)
    ends = [(watch.BYE, 0), (watch.END, 130), (watch.END, 2), (watch.END, 1)]
    assert told == [(peer, *message) for message in ends for peer in (1, 2)]


@pytest.mark.parametrize("text", ["a.png is damaged", "x" * 5000])
def test_a_message_has_one_length_whatever_it_says(monkeypatch, text):
    sent, here = [], object.__new__(watch.Watch)
    here.group = "group"
    monkeypatch.setattr(
        watch.dist, "send", lambda message, peer, group: sent.append((bytes(message.tolist()), peer, group))
    )
    here._tell(2, watch.FAILED, 7, text)
    ((message, peer, group),) = sent
    assert (len(message), peer, group) == (watch.LENGTH, 2, "group") and list(message[:2]) == [watch.FAILED, 7]
    assert message[2:].rstrip(b"\0").decode() == text[: watch.LENGTH - 2]


def test_ranks_that_cannot_meet_are_told_so_in_one_line(tmp_path, monkeypatch, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        variables = {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1"}
        for name, value in {**variables, "MASTER_PORT": taken.getsockname()[1]}.items():
            monkeypatch.setenv(name, str(value))
        assert main(command(tmp_path / "run", 50)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mmfast: ")]
    assert line.startswith("mmfast: error: the ranks have not met (") and "MASTER_PORT" in line
    assert not (tmp_path / "run").exists()


def failing(rank, argv):
    """The command, with an example that this rank cannot read."""
    from mmfast.training import trainer

    check, batches = trainer.check_batch, []

    def fails(model, batch):
        batches.append(batch)
        if rank == int(os.environ["RANK"]) and len(batches) == 5:
            raise MmfastError("a.png is damaged")
        check(model, batch)

    trainer.check_batch = fails
    return main(argv)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_an_example_that_one_rank_cannot_read_ends_all_with_what_was_learnt_kept(tmp_path, rank):
    run = tmp_path / "run"
    job = Job(2, tmp_path, failing, rank, command(run, 100))
    assert job.wait() == [2, 2]
    first, second = job.said()
    assert first == f"mmfast: error: {'rank 1: ' if rank else ''}a.png is damaged\n" and second == ""
    assert load_tensors(run / "trainer.safetensors")[1]["step"] == 4 == len(stats(run))


def damaged(argv):
    """The command, of which the second rank cannot read its share of the held-out examples."""
    from mmfast.training import validation

    check = validation.check_batch

    def fails(model, batch):
        if os.environ["RANK"] == "1":
            raise MmfastError("b.png is damaged")
        check(model, batch)

    validation.check_batch = fails
    return main(argv)


@pytest.mark.slow
def test_a_held_out_example_that_one_rank_cannot_read_ends_all_with_what_was_learnt_kept(tmp_path):
    run = tmp_path / "run"
    job = Job(2, tmp_path, damaged, command(run, 100, train__validate_every=3, train__validate_examples=32))
    assert job.wait() == [2, 2]
    assert job.said() == ["mmfast: error: b.png is damaged\n", ""]
    assert load_tensors(run / "trainer.safetensors")[1]["step"] == 3 == len(stats(run))


def test_what_all_ranks_find_wrong_is_said_once_and_leaves_no_folder(tmp_path):
    job = Job(2, tmp_path / "logs", main, command(tmp_path / "run", 9, train__batch_size=15))
    assert job.wait() == [2, 2]
    first, second = job.said()
    assert first.startswith("mmfast: error: train.batch_size is 15; ") and first.count("\n") == 1 and second == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_too_many_steps_left_out_end_all_and_are_said_once(tmp_path):
    options = {
        "train__learning_rate": "1.0e30",
        "train__checkpoint_every": 1,
        "train__log_every": 50,
        "train__warmup": 0,
        "train__max_skipped": 0,
    }
    job = Job(2, tmp_path / "logs", main, command(tmp_path / "run", 50, **options))
    assert job.wait() == [2, 2]
    first, second = job.said()
    said, error = first.splitlines()
    step = load_tensors(tmp_path / "run" / "trainer.safetensors")[1]["step"]
    assert said.startswith(f"mmfast: step {step + 1} was left out, with a gradient that is not finite; 1 of ")
    assert (
        error.startswith(f"mmfast: error: 1 of the last 100 steps, up to step {step + 1}, were left out") and not second
    )
    assert [line.get("skipped", False) for line in stats(tmp_path / "run")] == [False] * step + [True]


def unwritable(argv):
    from mmfast.run import Run

    def full(self, *args):
        assert os.environ["RANK"] == "0"
        raise MmfastError("the disk is full")

    Run.save_state = full
    return main(argv)


@pytest.mark.slow
def test_what_the_first_rank_cannot_write_ends_all(tmp_path):
    job = Job(2, tmp_path / "logs", unwritable, command(tmp_path / "run", 50, train__checkpoint_every=3))
    assert job.wait() == [2, 2] and job.said() == ["mmfast: error: the disk is full\n", ""]


# --- torchrun itself ----------------------------------------------------------------------------------------------


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}

DIES_ONCE = """
import os, sys
from rank_runs import killed
sys.exit(killed(1 if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" else None, sys.argv[1:]))
"""


@pytest.mark.slow
def test_torchrun_starts_all_anew_where_a_rank_has_died(tmp_path, alone):
    script, run = tmp_path / "script.py", tmp_path / "run"
    script.write_text(DIES_ONCE)
    words = [*TORCHRUN, "--max-restarts", "1", str(script), *command(run, 100, train__checkpoint_every=5)]
    done = subprocess.run(words, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("mmfast: rank 1 of 2 (") == 1
    assert_one_curve(run, alone)


@pytest.mark.slow
def test_torchrun_is_stopped_and_goes_on(tmp_path):
    """SIGTERM, which it passes on to all processes of each rank, those that load data too."""
    run = tmp_path / "run"
    more = {"train__workers": 1, "train__log_every": 1}
    words = [*TORCHRUN, "-m", "mmfast", *command(run, 100_000, **more)]
    process = subprocess.Popen(words, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    while not (run / "stats.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0 and said.count("mmfast: ") == 1
    assert "mmfast: stopped; repeat the `mmfast train` command to resume" in said
    step = load_tensors(run / "trainer.safetensors")[1]["step"]
    assert 0 < step == len(stats(run)) < 100_000
