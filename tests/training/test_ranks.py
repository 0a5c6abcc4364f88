"""Ranks are one run: real processes on gloo, against one process."""

import dataclasses
import json
import os
import time

import numpy as np
import pytest
import torch
from processes import Job
from rank_runs import OPTIONS, assert_one_curve, assert_same_pictures, command, stopping
from tiny import tiny

from mmfast.build import build_data
from mmfast.cli import main
from mmfast.errors import MmfastError
from mmfast.files import load_tensors
from mmfast.ranks import ALONE, Ranks, joined
from mmfast.training import fit
from mmfast.training.average import Average
from mmfast.training.examples import parts
from mmfast.training.objective import losses

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
    together = Ranks(0, 4, divides=False)  # as shards need it: all do everything
    assert [rows.tolist() for rows in together.shares(3)] == [[0, 1, 2]] and together.at_most(250, 10) == 250
    assert together.map(lambda k: k * k, range(3)) == [0, 1, 4]


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
        said = "the config of rank 1 is b 1, d 'x'; it should be that of rank 0, b 0, d None: give every machine"
        with pytest.raises(MmfastError, match=said):
            here.check_same(the_config={"a": 5, "b": k, "c": [1], **({"d": "x"} if k else {})})
        for machines in (True, True, False):
            # Without regard to machines, even one that is the first of its own waits for the first of all.
            with (here if machines else dataclasses.replace(here, local=0)).in_turn(machines):
                file = folder / "made"
                assert file.exists() == bool(k)
                time.sleep(0.1 * other)
                file.write_text("by the first")
                (folder / f"{machines}-{k}").write_text("")
            # All leave together: nobody goes on to where the others' time is short.
            assert (folder / f"{machines}-0").exists() and (folder / f"{machines}-1").exists()
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


@pytest.mark.slow
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
    assert second == "" and first == "".join(f"{tmp_path / 'two' / name}\n" for name in ("drawn.npz", "drawn.png"))
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
