"""Training: what an example is depends on (seed, its number) alone, and no kill loses or repeats anything."""

import errno
import gc
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from processes import Job
from tiny import TINY, flags, tiny

from mmfast import config as configs
from mmfast import files, lock
from mmfast.build import build_data, build_model, with_found
from mmfast.cli import main
from mmfast.data import Batch
from mmfast.errors import MmfastError
from mmfast.files import load_tensors
from mmfast.run import Run
from mmfast.training.ema import EMA
from mmfast.training.examples import Order, given_flags, timesteps
from mmfast.training.loop import _steps, train
from mmfast.training.objective import losses
from mmfast.training.trainer import Trainer, learning_rate

# --- what example number n is -------------------------------------------------------------------------------------


def test_order_is_a_new_permutation_every_epoch():
    order = Order(seed=3, length=50)
    epochs = [[order.index(e * 50 + i) for i in range(50)] for e in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    # Reading it from the middle, or backwards, gives the same.
    assert [Order(3, 50).index(n) for n in (149, 75, 0)] == [epochs[2][49], epochs[1][25], epochs[0][0]]
    assert [Order(4, 50).index(n) for n in range(50)] != epochs[0]


def test_timesteps_and_given_are_uniform_and_depend_on_the_number_alone():
    numbers = torch.arange(200_000)
    t = timesteps(0, numbers, 1000)
    assert int(t.min()) == 1 and int(t.max()) == 1000
    # Chi-square over 1000 cells of expectation 200: mean 999, standard deviation 44.7; five of them.
    counts = torch.bincount(t - 1, minlength=1000).double()
    assert abs(float(((counts - 200) ** 2 / 200).sum()) - 999) < 5 * 44.7
    given = given_flags(0, numbers, [0.25] * 6)
    assert torch.allclose(given.mean(0), torch.tensor(0.25), atol=5 * (0.25 * 0.75 / 200_000) ** 0.5)
    assert abs(float(torch.corrcoef(given.T).fill_diagonal_(0).abs().max())) < 5 / 200_000**0.5
    some = torch.tensor([7, 199_999, 3])
    assert torch.equal(timesteps(0, some, 1000), t[some]) and torch.equal(given_flags(0, some, [0.25] * 6), given[some])


def test_the_share_at_T_is_what_was_asked_for_and_leaves_the_rest_uniform():
    numbers = torch.arange(100_000)
    t = timesteps(0, numbers, 1000)
    shares = torch.tensor([0.0, 0.3, 1.0]).repeat_interleave(40_000)[:100_000]
    at_T = timesteps(0, numbers, 1000, shares)
    moved = at_T != t
    assert bool((at_T[moved] == 1000).all()) and not bool(moved[shares == 0].any())
    assert bool((at_T[shares == 1] == 1000).all())
    # Of 40,000 examples 0.3 are moved, but for the thousandth that was at T before.
    assert abs(float(moved[shares == shares[50_000]].float().mean()) - 0.3 * 0.999) < 5 * (0.21 / 40_000) ** 0.5
    kept = t[(shares == shares[50_000]) & ~moved].double()
    assert abs(float(kept.mean()) - 500.5) < 5 * 288.7 / 28_000**0.5


def test_given_at_T_moves_the_examples_that_are_given_it_and_no_others(monkeypatch):
    """t as the loss draws it, seen where z_t is made."""
    from mmfast.training import objective

    seen: list[torch.Tensor] = []
    q_sample = objective.ops.q_sample

    def spy(z0, terms, t, *rest, **options):
        seen.append(t)
        return q_sample(z0, terms, t, *rest, **options)

    monkeypatch.setattr(objective.ops, "q_sample", spy)
    numbers = torch.arange(256)
    for options in (
        {"modalities__image__given_at_T": "null"},
        {"modalities__image__given_at_T": 1.0},
        {"modalities__image__given_at_T": 0.0, "modalities__label__given_at_T": 1.0},
        {"modalities__image__given_at_T": 1.0, "told": False},
    ):
        config = tiny(**options)
        losses(build_model(config), build_data(config).train.__getitems__(range(256)), numbers, config)
    usual, of_image, of_label, untold = seen
    flags = given_flags(0, numbers, [0.25, 0.4, 0.25]).bool()  # as the preset has them
    assert torch.equal(usual, timesteps(0, numbers, 1000)) and torch.equal(untold, usual)
    for t, given in ((of_image, flags[:, 0]), (of_label, flags[:, 1])):
        assert 30 < int(given.sum()) < 130
        assert bool((t[given] == 1000).all()) and torch.equal(t[~given], usual[~given])


def test_a_share_at_T_out_of_bounds_is_named():
    with pytest.raises(MmfastError, match=r"modalities\.image\.given_at_T"):
        tiny(modalities__image__given_at_T=1.5)


def test_no_example_is_given_all_that_it_has():
    """Of two, each given half of the time: a quarter neither, and the quarter that would be both goes to either."""
    numbers, n = torch.arange(100_000), 100_000
    given = given_flags(0, numbers, [0.5, 0.5])
    neither, first, second = ((given == torch.tensor(x)).all(1).float().mean() for x in ((0, 0), (1, 0), (0, 1)))
    for share, expected in ((neither, 0.25), (first, 0.375), (second, 0.375)):
        assert abs(float(share) - expected) < 5 * (expected * (1 - expected) / n) ** 0.5
    assert float(given_flags(0, numbers, [1.0]).sum()) == 0  # alone
    # Of three of which an example lacks the second, it is given one of the other two, as often either.
    present = torch.tensor([1.0, 0.0, 1.0]).expand(n, 3)
    some = given_flags(0, numbers, [1.0] * 3, present)
    assert torch.equal(some.sum(1), torch.ones(n)) and float(some[:, 1].sum()) == 0
    assert abs(float(some[:, 0].mean()) - 0.5) < 5 * 0.5 / n**0.5
    # What would not be all of it stays as it was.
    assert torch.equal(given_flags(0, numbers, [1.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 1.0]).expand(n, 3))
    assert float(given_flags(0, numbers[:5], [1.0, 1.0], torch.zeros(5, 2)).sum()) == 0


def test_a_batch_split_in_two_has_the_same_loss():
    config = tiny()
    model, data = build_model(config), build_data(config)
    batch, numbers = data.train.__getitems__(range(32)), torch.arange(100, 132)
    whole = losses(model, batch, numbers, config)
    halves = [losses(model, data.train.__getitems__(range(a, a + 16)), numbers[a : a + 16], config) for a in (0, 16)]
    for name, value in whole.items():
        # float32 means of 32 numbers in another order: a few units in the last place.
        assert torch.allclose(value, (halves[0][name] + halves[1][name]) / 2, rtol=1e-5, atol=1e-7)


def test_what_a_missing_modality_holds_changes_nothing():
    config = tiny(modalities__code="{kind: embedding, dim: 6}")
    model = build_model(config)
    torch.nn.init.normal_(model.out.weight)
    tensors = build_data(tiny()).train.__getitems__(range(8)).data
    present = {"code": torch.tensor([True, False] * 4)}
    found = []
    for junk in (0.0, float("nan")):
        code = torch.linspace(-1, 1, 48).reshape(8, 6).clone()
        code[1::2] = junk
        model.zero_grad()
        parts = losses(model, Batch({**tensors, "code": code}, present), torch.arange(8), config)
        torch.stack(list(parts.values())).sum().backward()
        found.append([x.detach() for x in parts.values()] + [p.grad.clone() for p in model.parameters()])
    # The loss of the missing ones is masked by a product, so it must be finite before: NaN would show here.
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_learning_rate_rises_then_falls():
    config = tiny(train__warmup=10, train__steps=110, train__decay="cosine", train__learning_rate=1.0)
    assert learning_rate(config, 5) == pytest.approx(0.5)
    assert learning_rate(config, 10) == pytest.approx(1.0)
    assert learning_rate(config, 60) == pytest.approx(0.5)
    assert learning_rate(config, 110) == pytest.approx(0.0, abs=1e-12)


def test_ema_is_the_weighted_sum_of_the_weights():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    ema, expected = EMA(model, 0.9), 0.0
    for step in range(1, 30):
        torch.nn.init.constant_(model.weight, float(step))
        ema.update(model, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert float(ema.model.weight) == pytest.approx(expected, rel=1e-6)


# --- a run --------------------------------------------------------------------------------------------------------


def test_a_run_learns_and_leaves_everything(tmp_path):
    config = tiny(
        train__steps=100,
        train__warmup=10,
        backbone__width=64,
        train__decay="constant",
        evaluate__samples=20,
        train__log_every=20,
    )
    run = train(config, str(tmp_path / "run"), quiet=True)
    stats = [json.loads(line) for line in run.stats_file.read_text().splitlines()]
    assert [line["step"] for line in stats] == list(range(1, 101))
    assert [line["images"] for line in stats] == [16 * n for n in range(1, 101)]
    first, last = (sum(line["loss"] for line in part) for part in (stats[:20], stats[-20:]))
    assert last < 0.7 * first
    for name in ("model.safetensors", "ema.safetensors", "config.yaml", "metrics.json"):
        assert (run.folder / name).stat().st_size > 0
    assert len(list(run.samples.glob("*.png"))) == 4
    metrics = json.loads((run.folder / "metrics.json").read_text())
    for name in ("label.joint_agreement", "label.conditional_accuracy", "label.recovered_accuracy"):
        assert 0 <= metrics[name] <= 1
    assert {"mask.joint_iou", "mask.conditional_iou", "frechet.samples", "frechet.real_halves"} <= set(metrics)
    # A probability of pixels and of each discrete modality, with every reverse process; and the error of z_0 against t.
    for prefix in ("bound", "bound.fitted", "bound.nearer"):
        assert {f"{prefix}.{key}" for key in ("pixels_bits", "discrete.label_bits", "discrete.mask_bits")} <= set(
            metrics
        )
    assert {f"bound.L{k}" for k in range(4)} | {"x0_error.1", "x0_error.1000"} <= set(metrics)
    # The fit is worth it: nothing but the training split is known to it.
    assert metrics["bound.fitted.pixels"] < metrics["bound.pixels"]
    assert Run.open(run.folder).config() == with_found(config)


def test_accumulation_sees_the_same_examples(tmp_path):
    ends = []
    for k in (1, 4):
        run = train(tiny(train__steps=5, train__accumulation=k), str(tmp_path / str(k)), quiet=True)
        ends.append(load_tensors(run.folder / "model.safetensors")[0])
    # Float32 sums in another order, through five AdamW steps of size 2e-3 at most: far below one step.
    assert all(torch.allclose(ends[0][n], ends[1][n], atol=2e-4) for n in ends[0])


def test_tensorboard_files_hold_each_step_once(tmp_path):
    event = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    pairs = dict(train__steps=12, train__checkpoint_every=4, train__log_every=2, train__tensorboard="true")
    run = train(tiny(**pairs), str(tmp_path / "run"), quiet=True)
    found = event.EventAccumulator(str(run.folder / "tensorboard")).Reload()
    assert [x.step for x in found.Scalars("loss")] == list(range(1, 13))


def test_restoring_brings_back_every_bit(tmp_path):
    config = tiny(train__steps=6, train__checkpoint_every=3)
    run = train(config, str(tmp_path / "run"), quiet=True)
    trainer = Trainer(config, run, build_data(config))
    trainer.restore()
    kept, _ = load_tensors(run.folder / "trainer.safetensors")
    again = trainer.state()
    assert trainer.done == 6 and set(kept) == set(again)
    assert all(torch.equal(kept[name], again[name]) for name in kept)


# The last: Ctrl-C reaches all processes of a terminal, and one of them passes it on.
@pytest.mark.parametrize(
    "numbers", [[signal.SIGINT], [signal.SIGTERM], [signal.SIGHUP], [signal.SIGINT, signal.SIGTERM]]
)
def test_asked_to_stop_it_keeps_the_steps_done(tmp_path, numbers):
    config = tiny(train__steps=30, train__checkpoint_every=1000, train__log_every=1)
    run = Run.start(tmp_path / "run", config)
    trainer = Trainer(config, run, build_data(config))
    step = trainer.step

    def interrupted(*args):
        if trainer.done == 7:
            for number in numbers:
                os.kill(os.getpid(), number)
        step(*args)

    trainer.step = interrupted
    with pytest.raises(KeyboardInterrupt):
        _steps(trainer, quiet=True)
    assert load_tensors(run.folder / "trainer.safetensors")[1]["step"] == 8
    assert all(signal.getsignal(number) not in (None, trainer) for number in numbers)


def test_training_leaves_torchs_generator_and_no_open_lock(tmp_path):
    """What the caller draws next does not hang on it, and the lock is closed with the run."""
    config = tiny(train__steps=2)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", ResourceWarning)
        train(config, str(tmp_path / "run"), quiet=True)
        gc.collect()
    assert torch.equal(torch.rand(3), expected)
    assert not [x for x in seen if issubclass(x.category, ResourceWarning)]
    if Path("/proc/self/fd").exists():
        opened = [os.path.realpath(fd) for fd in Path("/proc/self/fd").iterdir()]
        assert str((tmp_path / "run" / ".lock").resolve()) not in opened


def test_two_processes_do_not_train_one_run(tmp_path):
    run = Run.start(tmp_path / "run", tiny())
    second = Job(1, tmp_path / "second", main, ["train", "digits", "--out", str(run.folder), "--quiet", *flags(TINY)])
    assert second.wait() == [2]
    (said,) = second.said()
    assert "another process" in said and "Traceback" not in said


def test_a_process_may_start_a_run_twice_and_keeps_the_lock(tmp_path):
    """A notebook after Ctrl-C: the run that it drops ends the lock no more than a worker that is forked has it."""
    first = Run.start(tmp_path / "run", tiny())
    second = Run.start(tmp_path / "run", tiny())
    del first
    gc.collect()
    assert _taken(tmp_path / "run")
    del second
    gc.collect()
    assert not _taken(tmp_path / "run")


def _taken(folder):
    """Whether a process that is forked now is refused."""
    child = os.fork()
    if child == 0:
        try:
            Run.start(folder, tiny())
            os._exit(0)
        except MmfastError as error:
            os._exit(7 if "is being trained by another process" in str(error) else 1)
        finally:
            os._exit(2)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 7)
    return status == 7


def test_where_there_are_no_locks_a_second_trainer_is_noticed(tmp_path, monkeypatch):
    """No line is there twice, and the one that goes on is whole."""

    def none(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "lockf", none)
    config = tiny(train__steps=4, train__log_every=1, train__checkpoint_every=2)
    trainers = [Trainer(config, Run.start(tmp_path / "run", config), build_data(config)) for _ in range(2)]
    for trainer in trainers:
        trainer.restore()
    one, other = trainers
    step = one.step

    def both(*args):
        step(*args)
        if one.done == 3:
            with pytest.raises(ValueError, match=r"another one trains in this folder, .*saves nothing more"):
                _steps(other, quiet=True)

    one.step = both
    _steps(one, quiet=True)
    assert [json.loads(line)["step"] for line in (tmp_path / "run" / "stats.jsonl").open()] == [1, 2, 3, 4]
    assert load_tensors(tmp_path / "run" / "trainer.safetensors")[1]["step"] == 4 and other.done == 1


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    config = tiny(train__steps=6, train__checkpoint_every=2)
    saved, real = [], files.save_file

    def full(tensors, file, metadata):
        if json.loads(metadata["mmfast"])["step"] == 4:
            file.write_bytes(b"half of it")
            raise files.SafetensorError("No space left on device")
        saved.append(file)
        real(tensors, file, metadata)

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(ValueError, match="No space left on device; make room"):
        train(config, str(tmp_path / "run"), quiet=True)
    monkeypatch.setattr(files, "save_file", real)
    assert saved and Run.open(tmp_path / "run").load_state()[1]["step"] == 2
    straight = train(config, str(tmp_path / "straight"), quiet=True)
    again = train(config, str(tmp_path / "run"), quiet=True)
    a, b = (load_tensors(run.folder / "model.safetensors")[0] for run in (straight, again))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_workers_load_the_same_data(tmp_path):
    ends = [train(tiny(train__steps=3, train__workers=n), str(tmp_path / str(n)), quiet=True) for n in (0, 2)]
    a, b = (load_tensors(run.folder / "model.safetensors")[0] for run in ends)
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "moments"), [("fp32", [25]), ("fp32", [5, 25, 40]), ("bf16", [25])])
def test_killed_anywhere_it_ends_with_the_same_weights(tmp_path, precision, moments):
    """SIGKILL after so many steps (5: before the first checkpoint); the same command each time, at last in here."""
    pairs = [*TINY, ("train.steps", "60"), ("train.checkpoint_every", "7"), ("train.log_every", "3"),
             ("train.precision", precision), ("backbone.dropout", "0.1")]  # fmt: skip
    straight = train(configs.load("digits", pairs), str(tmp_path / "straight"), quiet=True)
    out = tmp_path / "killed"
    words = ["train", "digits", "--out", str(out), "--quiet", *flags(pairs)]
    command = [sys.executable, "-m", "mmfast", *words]
    # One thread count for all: torch's sums depend on it.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    for lines in moments:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        stats, deadline = out / "stats.jsonl", time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if stats.exists() and stats.read_text().count("\n") >= lines:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        process.wait()
    assert main(words) == 0
    for name in ("model", "ema", "trainer"):
        a, b = (load_tensors(folder / f"{name}.safetensors")[0] for folder in (straight.folder, out))
        assert set(a) == set(b) and all(torch.equal(a[n], b[n]) for n in a)
    steps = [json.loads(line)["step"] for line in (out / "stats.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 61))
    losses_of = [
        [json.loads(line)["loss"] for line in (folder / "stats.jsonl").read_text().splitlines()]
        for folder in (straight.folder, out)
    ]
    assert losses_of[0] == losses_of[1]
    assert not list(out.rglob(".tmp-*"))  # a kill may leave a half-written file: it is cleared away
