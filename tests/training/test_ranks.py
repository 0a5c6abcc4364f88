"""Ranks are one run: real processes on gloo, against one process."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from processes import Job
from tiny import TINY, flags, tiny

from mmfast.build import build_data
from mmfast.cli import main
from mmfast.errors import MmfastError
from mmfast.files import load_tensors
from mmfast.ranks import ALONE, Ranks, joined
from mmfast.training import fit
from mmfast.training.average import Average
from mmfast.training.examples import parts
from mmfast.training.objective import losses

PAIRS = [*TINY, ("backbone.width", "16"), ("train.log_every", "5")]
TRAIN = ["train", "digits", "--quiet", *flags(PAIRS)]
OPTIONS = {key.replace(".", "__"): value for key, value in PAIRS}


def command(out, steps, **options):
    more = {"train.steps": steps, **{key.replace("__", "."): value for key, value in options.items()}}
    return [*TRAIN, "--out", str(out), *flags([(key, str(value)) for key, value in more.items()])]


def stats(run):
    return [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]


def assert_one_curve(run, other, within=1e-5):
    """The losses, norms and rates of every step, and the weights at the end."""
    lines, others = stats(run), stats(other)
    assert [line["step"] for line in lines] == list(range(1, len(others) + 1)) and lines
    for line, wanted in zip(lines, others, strict=True):
        assert line == {name: pytest.approx(x, abs=within) for name, x in wanted.items()}
    for name in ("model", "ema"):
        (a, about), (b, wanted) = (load_tensors(folder / f"{name}.safetensors") for folder in (run, other))
        assert about == wanted and a.keys() == b.keys()
        for key, x in a.items():
            torch.testing.assert_close(x, b[key], rtol=0, atol=within, msg=key)


def assert_same_pictures(run, other):
    """But for rounding: a level of grey here and there."""
    names = [sorted(p.name for p in (folder / "samples").iterdir()) for folder in (run, other)]
    assert names[0] == names[1] and len(names[0]) == 4
    for name in names[0]:
        a, b = (np.asarray(Image.open(folder / "samples" / name)).astype(int) for folder in (run, other))
        assert a.shape == b.shape and np.abs(a - b).max() <= 1


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run of 100 steps by one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert main(command(folder, 100, train__checkpoint_every=30)) == 0
    return folder


# --- what a rank is given -----------------------------------------------------------------------------------------


def numbers(ranks, accumulation, step=3):
    config = tiny(train__batch_size=24, train__accumulation=accumulation)
    return [parts(config, Ranks(k, ranks), step) for k in range(ranks)]


CUTS = [(1, 1, 1), (1, 4, 4), (4, 1, 4), (2, 4, 4), (4, 2, 4), (2, 3, 6)]
NAMES = [("RANK", None), ("MASTER_PORT", None), ("WORLD_SIZE", "two"), ("LOCAL_RANK", "-1")]


@pytest.mark.parametrize("ranks, accumulation, count", CUTS)
def test_a_batch_is_cut_into_parts_whoever_computes_them(ranks, accumulation, count):
    found = numbers(ranks, accumulation)
    assert sorted(n for own in found for part in own for n in part) == list(range(72, 96))
    assert {len(own) for own in found} == {count // ranks}
    whole = numbers(1, count)[0]
    assert sorted((part for own in found for part in own), key=lambda part: part.start) == whole


def test_a_batch_that_ranks_cannot_share_is_refused():
    with pytest.raises(MmfastError, match=r"train.batch_size is 24; it should be a multiple of 10, so that 5 ranks"):
        numbers(5, 2)


def test_a_process_by_itself_says_things_to_itself():
    x = torch.ones(2)
    assert ALONE.any(True, False) == [True, False] and ALONE.mean(x) is x and ALONE.told(3) == 3
    assert ALONE.map(lambda k: k * k, range(3)) == [0, 1, 4] and ALONE.at_most(250, 10) == 250
    assert [rows.tolist() for rows in ALONE.shares(3)] == [[0, 1, 2]]
    assert [rows.tolist() for rows in Ranks(0, 4).shares(2)] == [[0], [1]] and Ranks(0, 4).at_most(250, 10) == 3


@pytest.mark.parametrize("name, value", NAMES)
def test_variables_that_torchrun_has_not_set_are_named(name, value, monkeypatch, capsys):
    for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(key, "2")
    monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    assert main(["eval", "nowhere"]) == 2
    was = "is not set" if value is None else f"is '{value}'"
    assert capsys.readouterr().err.startswith(f"mmfast: error: {name} {was}; torchrun sets it")


# --- the mean over ranks ------------------------------------------------------------------------------------------


def talk(folder):
    """What ranks tell each other, by value; and gradients, of which one rank or all lack some."""
    with joined() as here:
        with joined() as again:
            assert again is here and here.count == 2
        k, other = here.index, 1 - here.index
        assert here.any(k == 0, False, True) == [True, False, True]
        assert here.mean(torch.tensor([2.0 * k, 3.0])).tolist() == [1.0, 3.0]
        assert here.told(("of", k)) == ("of", 0) and here.all(k) == [0, 1]
        assert here.map(lambda x: (x, here.index), [5, 6, 7]) == [(5, 0), (6, 1), (7, 1)]
        received = here.tensors({"a": torch.full((2, 3), float(k)), "b": torch.tensor(7 + k)})
        assert torch.equal(received["a"], torch.zeros(2, 3)) and int(received["b"]) == 7
        here.check_same(the_config="one")
        with pytest.raises(MmfastError, match="the config of rank 1 is 1; it should be that of rank 0, 0: give every"):
            here.check_same(the_config=k)
        for _ in range(2):
            with here.in_turn():
                file = folder / "made"
                assert file.exists() == bool(k)
                time.sleep(0.1 * other)
                file.write_text("by the first")
            here.any(True)
            file.unlink(missing_ok=True)
            here.any(True)
        # Two of these are in a bucket together; the rest are alone.
        a, b, c, d = (torch.nn.Parameter(torch.full((4, n), 2.0)) for n in (3, 1, 1, 1))
        mean = Average([a, b, c, d], here, most=40)
        assert [len(bucket) for bucket in mean.buckets] == [2, 1, 1]
        for step in (1.0, 2.0):
            for x in (a, b, c, d):
                x.grad = None
            (a.sum() * (k + step)).backward()  # of a part that is not the last
            mean.begin()
            loss = a.sum() + (b * b).sum() * step
            (loss + d.sum() * (k + 1) if k else loss).backward()
            mean.end()
            assert a.grad.unique().tolist() == [1.5 + step] and b.grad.unique().tolist() == [4 * step]
            assert c.grad is None and d.grad.unique().tolist() == [1.0]


def test_what_ranks_tell_each_other(tmp_path):
    Job(2, tmp_path, talk, tmp_path).done()


# --- training -----------------------------------------------------------------------------------------------------


class Seeing:
    """The loss, with what the network is shown of each example written down: z_t (its picture and noise) and times."""

    def __init__(self):
        self.shown = {}

    def __call__(self, model, batch, numbers, config):
        if not torch.is_grad_enabled():
            return losses(model, batch, numbers, config)

        def show(module, inputs):
            z_t, times, _ = inputs
            for n, z, t in zip(numbers.tolist(), z_t, times, strict=True):
                assert n not in self.shown
                self.shown[n] = (z.detach().clone(), t.clone())

        hook = model.register_forward_pre_hook(show)
        try:
            return losses(model, batch, numbers, config)
        finally:
            hook.remove()


def see(folder, **options):
    learned = {"modalities__label__encoder": "learned", "modalities__mask__encoder": "learned"}
    config, seeing = tiny(**OPTIONS, **learned, train__steps=4, backbone__dropout=0.1, **options), Seeing()
    fit(config, str(folder / "run"), build_data(config), seeing, quiet=True)
    torch.save(seeing.shown, folder / f"shown{os.environ.get('RANK', 0)}.pt")


def shown(folder):
    found = {}
    for file in sorted(folder.glob("shown*.pt")):
        part = torch.load(file, weights_only=True)
        assert not found.keys() & part.keys()
        found |= part
    return found


def see_alike(tmp_path, ranks):
    """By one process, whole; the same in parts; and by ranks, to each of which a part falls."""
    see(tmp_path / "one")
    see(tmp_path / "parts", train__accumulation=ranks)
    Job(ranks, tmp_path / "ranks", see, tmp_path / "ranks").done()
    one, in_parts, by_ranks = (shown(tmp_path / name) for name in ("one", "parts", "ranks"))
    assert set(one) == set(in_parts) == set(by_ranks) == set(range(64))
    for n, (z, t) in one.items():
        for other in (in_parts, by_ranks):
            assert torch.equal(other[n][1], t) and torch.equal(other[n][0][:1], z[:1])  # times; picture and noise
            torch.testing.assert_close(other[n][0], z, rtol=0, atol=1e-5)  # encoded by weights that were learnt
    # Dropout draws for parts: these two are one run.
    assert_one_curve(tmp_path / "ranks" / "run", tmp_path / "parts" / "run")


def test_ranks_see_the_same_examples_times_and_noise(tmp_path):
    see_alike(tmp_path, 2)


@pytest.mark.slow
def test_four_ranks_see_the_same_examples_times_and_noise(tmp_path):
    see_alike(tmp_path, 4)


def test_two_ranks_train_as_one_process_does_and_one_goes_on_alone(tmp_path, alone):
    """The first 60 steps by two."""
    run = tmp_path / "run"
    job = Job(2, tmp_path / "logs", main, command(run, 100, train__checkpoint_every=30))
    while not ((run / "trainer.safetensors").exists() and load_tensors(run / "trainer.safetensors")[1]["step"] >= 60):
        assert job.processes[0].is_alive(), job.said()
        time.sleep(0.02)
    for process in job.processes:
        process.kill()
    job.wait()
    assert main(command(run, 100, train__checkpoint_every=30)) == 0
    assert_one_curve(run, alone)
    assert sorted(p.name for p in run.iterdir()) == sorted(p.name for p in alone.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("ranks, accumulation", [(2, 1), (4, 1), (2, 4), (4, 2)])
def test_a_hundred_steps_by_ranks_and_in_parts(tmp_path, alone, ranks, accumulation):
    run = tmp_path / "run"
    Job(ranks, tmp_path, main, command(run, 100, train__accumulation=accumulation)).done()
    assert_one_curve(run, alone)
    assert_same_pictures(run, alone)


def sharded(argv):
    """The command, which has to hold a half of each of the network's weights here, and all of the rest."""
    from mmfast.training import trainer

    export = trainer.Trainer.export

    def looks(self):
        for model in self.modules.values():
            for name, p in model.named_parameters():
                assert hasattr(p, "to_local") == name.startswith("backbone."), name
                assert not hasattr(p, "to_local") or len(p.to_local()) <= -(-len(p) // 2), name
        export(self)

    trainer.Trainer.export = looks
    return main(argv)


NETWORKS = [{}, {"backbone": "{kind: unet, channels: 8, multipliers: [1, 2], attention: [4]}"}]


@pytest.mark.parametrize("network", [NETWORKS[0], pytest.param(NETWORKS[1], marks=pytest.mark.slow)])
def test_weights_in_shards_train_as_whole_ones_do(tmp_path, network):
    """The norm is over all shards: the gradient is clipped in every step."""
    options = {**network, "train__grad_clip": 0.1, "train__shard": "true", "train__weight_decay": 0.1}
    assert main(command(tmp_path / "one", 12, **options)) == 0
    Job(2, tmp_path, sharded, command(tmp_path / "run", 12, **options)).done()
    assert_one_curve(tmp_path / "run", tmp_path / "one")
    assert_same_pictures(tmp_path / "run", tmp_path / "one")
    assert min(line["grad_norm"] for line in stats(tmp_path / "run")) > 0.2
    (a, about), (b, wanted) = (load_tensors(tmp_path / name / "trainer.safetensors") for name in ("run", "one"))
    assert about["step"] == wanted["step"] == 12 and a.keys() == b.keys()
    for name, x in a.items():
        torch.testing.assert_close(x, b[name], rtol=0, atol=1e-5, msg=name)


@pytest.mark.slow
def test_shards_are_cut_anew_for_another_number_of_ranks(tmp_path):
    whole = command(tmp_path / "run", 60, train__checkpoint_every=10, train__shard="true")
    for ranks, until in ((2, 15), (1, 30), (4, 45)):
        assert Job(ranks, tmp_path / str(until), stopping, until, whole).wait() == [130] * ranks
    Job(2, tmp_path / "end", main, whole).done()
    assert main(command(tmp_path / "one", 60, train__shard="true")) == 0
    assert_one_curve(tmp_path / "run", tmp_path / "one")


def test_shards_do_not_go_with_graphs_or_the_compiler():
    for name in ("cuda_graphs", "compile"):
        with pytest.raises(MmfastError, match=r"train.shard is true; it goes with train.cuda_graphs=false and"):
            tiny(train__shard="true", **{f"train__{name}": "true"})


@pytest.mark.slow
def test_a_run_moves_from_two_ranks_to_one_to_four(tmp_path, alone):
    run = tmp_path / "run"
    whole = command(run, 100, train__checkpoint_every=30)
    for ranks, until in ((2, 25), (1, 60)):
        job = Job(ranks, tmp_path / str(ranks), stopping, until, whole)
        assert job.wait() == [130] * ranks, job.said()
        assert load_tensors(run / "trainer.safetensors")[1]["step"] == until
    Job(4, tmp_path / "4", main, whole).done()
    assert_one_curve(run, alone)
    assert_same_pictures(run, alone)


def stopping(until, argv):
    """The command, of which the last rank is asked to stop in a step."""
    from mmfast.training.trainer import Trainer

    step = Trainer.step

    def asked(self, *args):
        step(self, *args)
        if self.done == until and self.ranks.index == self.ranks.count - 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)

    Trainer.step = asked
    return main(argv)


def test_a_signal_to_one_rank_stops_all_after_the_step_in_hand(tmp_path):
    run = tmp_path / "run"
    job = Job(2, tmp_path, stopping, 7, command(run, 100))
    assert job.wait() == [130, 130]
    assert load_tensors(run / "trainer.safetensors")[1]["step"] == 7 == len(stats(run))
    first, second = job.said()
    assert first == "mmfast: stopped; `mmfast train`, repeated, goes on where it stopped\n" and second == ""


def killed(rank, argv):
    from mmfast.training.trainer import Trainer

    step = Trainer.step

    def dies(self, *args):
        if self.done == 8 and self.ranks.index == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        step(self, *args)

    Trainer.step = dies
    return main(argv)


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_rank_that_dies_ends_all_and_is_named(tmp_path, rank):
    run = tmp_path / "run"
    job = Job(2, tmp_path, killed, rank, command(run, 100, train__checkpoint_every=3))
    assert job.wait(60)[1 - rank] == 1 and job.processes[rank].exitcode == -signal.SIGKILL
    said = job.said()[1 - rank].splitlines()
    name = f"process {job.processes[rank].pid}"
    (line,) = [line for line in said if line.startswith("mmfast: ")]
    assert line.startswith(f"mmfast: rank {rank} of 2 (") and f"{name}) has died" in line
    assert load_tensors(run / "trainer.safetensors")[1]["step"] == 6


def failing(rank, argv):
    """The command, with an example that this rank cannot read."""
    from mmfast.training import trainer

    check, batches = trainer.check_batch, []

    def fails(model, batch):
        batches.append(batch)
        if rank == int(os.environ["RANK"]) and len(batches) == 7:  # two before there is a run
            raise MmfastError("a.png is damaged")
        check(model, batch)

    trainer.check_batch = fails
    return main(argv)


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_an_example_that_one_rank_cannot_read_ends_all_with_what_was_learnt_kept(tmp_path, rank):
    run = tmp_path / "run"
    job = Job(2, tmp_path, failing, rank, command(run, 100))
    assert job.wait() == [2, 2]
    first, second = job.said()
    assert first == f"mmfast: error: {'rank 1: ' if rank else ''}a.png is damaged\n" and second == ""
    assert load_tensors(run / "trainer.safetensors")[1]["step"] == 4 == len(stats(run))


def test_what_all_ranks_find_wrong_is_said_once_and_leaves_no_folder(tmp_path):
    job = Job(2, tmp_path / "logs", main, command(tmp_path / "run", 9, train__batch_size=15))
    assert job.wait() == [2, 2]
    first, second = job.said()
    assert first.startswith("mmfast: error: train.batch_size is 15; ") and first.count("\n") == 1 and second == ""
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_ends_all_and_is_said_once(tmp_path):
    options = {
        "train__learning_rate": "1.0e30",
        "train__checkpoint_every": 1,
        "train__log_every": 1,
        "train__warmup": 0,
    }
    job = Job(2, tmp_path / "logs", main, command(tmp_path / "run", 50, **options))
    assert job.wait() == [2, 2]
    first, second = job.said()
    assert first.startswith("mmfast: error: the loss is ") and first.count("\n") == 1 and second == ""
    step = load_tensors(tmp_path / "run" / "trainer.safetensors")[1]["step"]
    assert f"at step {step + 1};" in first and len(stats(tmp_path / "run")) == step


def unwritable(argv):
    from mmfast.run import Run

    def full(self, *args):
        assert os.environ["RANK"] == "0"
        raise MmfastError("the disk is full")

    Run.save_state = full
    return main(argv)


def test_what_the_first_rank_cannot_write_ends_all(tmp_path):
    job = Job(2, tmp_path / "logs", unwritable, command(tmp_path / "run", 50, train__checkpoint_every=3))
    assert job.wait() == [2, 2] and job.said() == ["mmfast: error: the disk is full\n", ""]


# --- torchrun itself ----------------------------------------------------------------------------------------------


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}

DIES_ONCE = """
import os, sys
from test_ranks import killed
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
    assert "mmfast: stopped; `mmfast train`, repeated, goes on where it stopped" in said
    step = load_tensors(run / "trainer.safetensors")[1]["step"]
    assert 0 < step == len(stats(run)) < 100_000


# --- sampling and evaluation --------------------------------------------------------------------------------------


def draw(folder, run):
    folder.mkdir(exist_ok=True)
    sample = ["sample", str(run), "--n", "5", "--steps", "3", "--quiet", "--given", "label=3", "--seed", "1"]
    return main([*sample, "--out", str(folder / "drawn.png"), "--npz", str(folder / "drawn.npz")])


def measure(folder, run):
    folder.mkdir(exist_ok=True)
    return main(["eval", str(run), "--samples", "30", "--quiet", "--json", str(folder / "metrics.json")])


def by_one_and_by_two(tmp_path, work, run):
    """What the first of two ranks says, and what the other does; the run is as it was."""
    before = sorted(p.name for p in run.rglob("*"))
    assert work(tmp_path / "one", run) == 0
    job = Job(2, tmp_path / "two", work, tmp_path / "two", run)
    job.done()
    assert sorted(p.name for p in run.rglob("*")) == before
    return job.said()


def test_two_ranks_draw_what_one_process_does(tmp_path, alone):
    first, second = by_one_and_by_two(tmp_path, draw, alone)
    assert second == "" and first == "".join(f"{tmp_path / 'two' / name}\n" for name in ("drawn.png", "drawn.npz"))
    a, b = (np.load(tmp_path / name / "drawn.npz") for name in ("two", "one"))
    assert set(a) == set(b) == {"image", "label", "mask"} and len(a["image"]) == 5
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_two_ranks_measure_what_one_process_does(tmp_path, alone):
    first, second = by_one_and_by_two(tmp_path, measure, alone)
    assert second == "" and first.count("frechet.samples") == 1
    a, b = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("two", "one"))
    assert a == {name: pytest.approx(x, rel=1e-3, abs=1e-5) for name, x in b.items()}
