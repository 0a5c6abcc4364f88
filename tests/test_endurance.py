"""What goes on for days keeps its memory, its handles and its silence; what threads share they may share."""

import gc
import os
import sys
import threading
import warnings
from pathlib import Path

import fresh
import pytest
import torch
from tiny import tiny

import mmfast
from mmfast import Schedule, ops
from mmfast.build import build_data, build_model
from mmfast.data import Data
from mmfast.data.base import InMemory
from mmfast.evaluate import evaluate
from mmfast.generate import generate
from mmfast.run import Run
from mmfast.training import train
from mmfast.training.examples import loader
from mmfast.training.trainer import Trainer

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
MEGABYTE = 2**20
SMALL = {
    "backbone__width": 8,
    "train__batch_size": 2,
    "sample__steps": 1,
    "sample__count": 1,
    "evaluate__samples": 2,
    "evaluate__bound_steps": 1,
}


def smallest(**more):
    """Of an image and its label alone."""
    config = tiny(**SMALL, **more)
    del config.modalities["mask"]
    return config


def resident():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def hold_flat(work, count, within=8 * MEGABYTE):
    """Do it `count` times: the second half of them takes no more memory, handles, threads or objects."""
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for k in range(count):
            if k in (count // 10, count // 2):
                seen.append(
                    (resident(), len(os.listdir("/proc/self/fd")), threading.active_count(), len(gc.get_objects()))
                )
            work()
    seen.append((resident(), len(os.listdir("/proc/self/fd")), threading.active_count(), len(gc.get_objects())))
    (_, *_), (middle, handles, threads, objects), (memory, *after) = seen
    assert memory - middle < within, f"{(memory - middle) / MEGABYTE:.1f} MB more over {count // 2} times"
    assert after[:2] == [handles, threads]
    assert after[2] - objects < 1000


@linux
@pytest.mark.slow
def test_steps_keep_their_memory(tmp_path):
    config = smallest(train__steps=5_001, train__log_every=50, train__checkpoint_every=500)
    run = Run.start(tmp_path / "run", config)
    trainer = Trainer(config, run, build_data(config))
    batches = loader(config, trainer.data.train, 0)

    def step():
        trainer.step(batches, trainer.model)
        if trainer.done % 50 == 0:
            trainer.flush()
        if trainer.done % 500 == 0:
            trainer.checkpoint()

    hold_flat(step, 5000)


@linux
@pytest.mark.slow
def test_sample_calls_keep_their_memory():
    config = smallest()
    model = build_model(config).eval()
    hold_flat(lambda: generate(model, config, 2), 1000)


@linux
@pytest.mark.slow
def test_evaluations_keep_their_memory(monkeypatch):
    monkeypatch.setattr("mmfast.evaluate.FITTED_TO", 8)
    monkeypatch.setattr("mmfast.evaluate.CURVE", 2)
    config = smallest()
    whole = build_data(config)
    few = [InMemory(part.__getitems__(range(64)).data) for part in (whole.train, whole.test)]
    model, data = build_model(config).eval(), Data(*few, whole.judges)
    hold_flat(lambda: evaluate(model, config, data, quiet=True), 100)


@linux
@pytest.mark.slow
def test_whole_runs_leave_nothing_open(tmp_path):
    count = iter(range(100))
    config = tiny(train__steps=1, train__log_every=1, **SMALL)
    hold_flat(lambda: train(config, str(tmp_path / str(next(count))), quiet=True), 20)


# --- threads ----------------------------------------------------------------------------------------------------------


def in_threads(count, work):
    """work(k) in `count` threads that begin at once and take turns as often as can be; what it returned, in order."""
    found, errors, together = [None] * count, [], threading.Barrier(count)

    def run(k):
        together.wait()
        try:
            found[k] = work(k)
        except BaseException as error:
            errors.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=run, args=(k,)) for k in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert errors == []
    return found


def test_threads_share_a_schedule():
    """Each with its own options and times: tables are derived, kept and dropped by all."""
    weights = {"label": mmfast.bridge(2.0), "mask": mmfast.carried(0.5)}
    z = torch.randn(2, 3, 4, 4)
    E = {"label": torch.randn(2, 3, 1, 1), "mask": torch.randn(2, 3, 4, 4)}

    def work(k, sched):
        out = []
        for i in range(20):
            t = 2 + (7 * k + i) % 18
            some = dict([*E.items()][: 1 + (k + i) % 2])
            out.append(ops.step(z, z, some, t, sched, (k + i) % t, eta=(i % 5) / 4, seed=k)[0])
            out.append(ops.q_sample(z, some, torch.tensor([t, k + 1]), sched, seed=i)[0])
            out.append(ops.diffusion_loss(z, z, t, sched, seed=i, min_snr_gamma=1.0 + k + i))
        return out

    shared = Schedule.cosine(20, weights)
    found = in_threads(16, lambda k: work(k, shared))
    for k, out in enumerate(found):
        alone = work(k, Schedule.cosine(20, weights))
        assert all(torch.equal(a, b) for a, b in zip(out, alone, strict=True))


def test_threads_share_a_model():
    """A server's: each thread draws its own samples, those that it draws alone."""
    config = tiny(**{**SMALL, "sample__steps": 3})
    model, labels = build_model(config).eval(), torch.arange(16) % 10
    alone = [generate(model, config, 2, {"label": labels[k : k + 1]}, seed=k) for k in range(16)]
    found = in_threads(16, lambda k: generate(model, config, 2, {"label": labels[k : k + 1]}, seed=k))
    for a, b in zip(found, alone, strict=True):
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- a light package --------------------------------------------------------------------------------------------------

IMPORTS = """
import sys
import torch
before = set(sys.modules)
import mmfast
assert not [name for name in set(sys.modules) - before if name.startswith("mmfast.") and name != "mmfast.errors"]
mmfast.ops, mmfast.Schedule
print(*sorted(set(sys.modules) - before))
"""


@pytest.mark.slow
def test_mmfast_imports_little_beyond_torch():
    """By what takes the time, the modules: those of the ops, and none of training, of data or of the command line."""
    done = fresh.run(IMPORTS)
    assert done.returncode == 0, done.stderr
    others = [name for name in done.stdout.split() if not name.startswith("mmfast")]
    assert others in ([], ["_mmfast_cpu"], ["_mmfast_cpu", "_mmfast_cuda"])
    assert len(done.stdout.split()) < 45
    parts = {name.split(".")[1] for name in done.stdout.split() if "." in name}
    assert parts <= {"errors", "keywords", "memory", "ops", "process", "schedule", "streams"}


FIRST_CALLS = """
import sys
import torch
import mmfast
from mmfast import ops
sched, t = mmfast.Schedule.cosine(1000, {"label": mmfast.carried()}), torch.tensor([1, 999])
z = torch.ones(2, 3, 4, 4, requires_grad=True)
z_t, _ = ops.q_sample(z, {"label": torch.ones(2, 3, 1, 1)}, t, sched, seed=1)
z_t.sum().backward()
with torch.no_grad():
    ops.step(z, z_t, {"label": torch.ones(3, 1, 1)}, t, sched, seed=1)
assert torch.allclose(z.grad[1], torch.full([3, 4, 4], float(sched.alpha_bar[999].sqrt())))
print("sympy" in sys.modules)
"""


def test_a_first_call_does_not_wait_for_sympy():
    """Whose import takes a second; torch needs it to broadcast symbolic shapes."""
    done = fresh.run(FIRST_CALLS)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


def test_the_package_is_small():
    """Under 5 MB, unpacked and with its extensions for the CPU: so is the wheel."""
    import importlib.util

    folder = Path(mmfast.__file__).parent
    spec = importlib.util.find_spec("_mmfast_cpu")
    files = [p for p in folder.rglob("*") if p.is_file() and p.suffix != ".pyc"]
    files += [Path(spec.origin)] if spec and spec.origin else []
    assert sum(p.stat().st_size for p in files) < 5 * 10**6
