"""Muon by value: written out in float64, beside torch's own, and as a part of training."""

import contextlib
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import Job
from rank_runs import assert_one_curve, command
from test_trainer import OPTIONS, RATES, Known, data
from tiny import tiny
from torch import nn

from benchmarks.launches import Launches
from mmfast.build import build_data, build_model
from mmfast.cli import main
from mmfast.errors import MmfastError
from mmfast.files import load_tensors
from mmfast.training import each, optimizer
from mmfast.training.loop import fit, train
from mmfast.training.optimizer import (
    ITERATIONS,
    MOMENTUM,
    POLYNOMIAL,
    RMS,
    Muon,
    build,
    matrices,
    orthogonal,
    with_one_moment,
)
from mmfast.training.state import check
from mmfast.training.trainer import Trainer

MUON = {"train__optimizer": "muon"}


def newton_schulz(x):
    """The iterations as published, on the matrix itself, in float64."""
    (a, b, c), tall = (3.4445, -4.7750, 2.0315), len(x) > x.shape[1]
    x = x.T if tall else x
    x = x / np.linalg.norm(x)
    for _ in range(5):
        x = a * x + (b * (x @ x.T) + c * (x @ x.T) @ (x @ x.T)) @ x
    return x.T if tall else x


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.sampled_from([1, 2, 3, 13, 20]), st.integers(0, 3) | st.integers(0, 30)), max_size=5),
    st.integers(0, 2**31),
)
def test_orthogonal_is_the_published_iteration(sizes, seed):
    """Matrices of one shape, or with as many rows, are multiplied together."""
    generator = np.random.default_rng(seed)
    shapes = [(short, short + k)[:: generator.choice([1, -1])] for short, k in sizes]
    xs = [generator.standard_normal(shape) * 10.0 ** (seed % 9 - 6) for shape in shapes]
    found = orthogonal([torch.from_numpy(x) for x in xs])
    # In float32 the eigenvalues of X X^T are off by 1e-7 of the largest; an iteration multiplies the least by a^2.
    single = orthogonal([torch.from_numpy(x).float() for x in xs])
    for mine, rough, x in zip(found, single, xs, strict=True):
        np.testing.assert_allclose(mine.numpy(), newton_schulz(x), rtol=0, atol=1e-9)
        assert float((rough - mine).norm() / mine.norm()) < 1e-2


def test_it_moves_singular_values_towards_one_and_keeps_the_vectors():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 24, 40, generator=generator, dtype=torch.float64)
    U, S, Vh = torch.linalg.svd(x, full_matrices=False)
    inner = U.mT @ torch.stack(orthogonal(x.unbind())) @ Vh.mT
    found = inner.diagonal(dim1=1, dim2=2)
    assert float(found.min()) > 0.6 and float(found.max()) < 1.25 and float(S.max() / S.min()) > 5
    assert float((inner - torch.diag_embed(found)).abs().max()) < 1e-12
    assert not bool(orthogonal([torch.zeros(3, 4)])[0].any())  # no gradient, no step


def grads(shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def test_every_step_is_torchs_own():
    if not hasattr(torch.optim, "Muon"):
        pytest.skip(f"torch {torch.__version__} has no Muon")
    shapes = [(20, 32), (48, 20), (24, 24)]
    mine, theirs = ([nn.Parameter(x) for x in grads(shapes, 0)] for _ in range(2))
    ours = Muon([{"params": mine, "muon": True}], lr=0.02, weight_decay=0.3)
    other = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.3, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    start = [p.detach().clone() for p in mine]
    for seed in range(1, 5):
        for p, q, g in zip(mine, theirs, grads(shapes, seed), strict=True):
            p.grad, q.grad = g.clone(), g.clone()
        ours.step(), other.step()
    for p, q, x in zip(mine, theirs, start, strict=True):
        # torch iterates in bfloat16, with a relative error of up to 2^-9 in each of about ten products.
        assert float((p - q).detach().norm()) < 10 * 2**-9 * float((q - x).detach().norm())


def test_it_takes_the_matrices_of_layers_and_leaves_the_rest():
    model = nn.Sequential(
        nn.Conv2d(2, 16, 3), nn.Conv2d(1, 16, 3), nn.Conv2d(16, 3, 3), nn.Linear(16, 16), nn.Linear(16, 15),
        nn.LayerNorm(64), nn.Embedding(32, 32),
    )  # fmt: skip
    assert matrices(model) == {model[0].weight, model[3].weight}
    extra = nn.Parameter(torch.zeros(3))
    found = build("muon", model, [extra], 1e-3, 0.1)
    assert [(len(g["params"]), g["weight_decay"], bool(g.get("muon"))) for g in found.param_groups] == [
        (11, 0.1, False), (2, 0.1, True), (1, 0.0, False)
    ]  # fmt: skip
    plain = build("adamw", model, [], 1e-3, 0.1)
    assert type(plain) is torch.optim.AdamW and len(plain.param_groups) == 1


def by_hand(model, seen, steps, clip, weight_decay, size=16):
    """The weights after training on `Known`, in float64: Muon for the matrices and AdamW for the rest."""
    of_muon = matrices(model)
    kinds = [p in of_muon for p in model.parameters()]
    assert any(kinds) and not all(kinds)
    w = [p.detach().double().numpy() for p in model.parameters()]
    m, v = ([np.zeros_like(x) for x in w] for _ in range(2))
    for step in range(1, steps + 1):
        n, x = (np.array(column) for column in zip(*seen[(step - 1) * size : step * size], strict=True))
        g = [each * n.mean() / 500 + (x / 100).mean() for each in w]
        norm, rate = math.sqrt(sum((each**2).sum() for each in g)), RATES[step - 1]
        for k, muon in enumerate(kinds):
            grad = g[k] * min(1, clip / norm)
            w[k] = w[k] * (1 - rate * weight_decay)
            if muon:
                m[k] = 0.95 * m[k] + 0.05 * grad
                wide = (0.05 * grad + 0.95 * m[k]).reshape(len(grad), -1)
                w[k] = w[k] - rate * 0.2 * math.sqrt(max(wide.shape)) * newton_schulz(wide).reshape(grad.shape)
            else:
                m[k], v[k] = 0.9 * m[k] + 0.1 * grad, 0.999 * v[k] + 0.001 * grad**2
                w[k] = w[k] - rate * (m[k] / (1 - 0.9**step)) / (np.sqrt(v[k] / (1 - 0.999**step)) + 1e-8)
    return w


def test_every_step_of_training_is_muons_for_matrices_and_adamws_for_the_rest(tmp_path):
    assert (MOMENTUM, ITERATIONS, POLYNOMIAL, RMS) == (0.95, 5, (3.4445, -4.7750, 2.0315), 0.2)
    config, known = tiny(**OPTIONS, **MUON), Known()
    wanted_of = build_model(config)
    found = fit(config, str(tmp_path / "run"), data(), known, quiet=True)
    wanted = by_hand(wanted_of, known.seen, 7, 0.6, 0.1)
    for p, w in zip(found.model.parameters(), wanted, strict=True):
        np.testing.assert_allclose(
            p.detach().numpy(), w, rtol=0, atol=2e-4
        )  # a twentieth of Muon's steps: they amplify float32's error


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_step_takes_as_many_launches_for_more_matrices_of_a_shape(decay):
    """Of a step as training takes it, which may be left out."""
    counts = []
    for many in (2, 9):
        parameters = [nn.Parameter(x) for x in grads([(16, 40)] * many + [(40, 16)] * many + [(16, 2, 3, 3)], 0)]
        found = Muon([{"params": parameters, "muon": True, "weight_decay": decay}], lr=0.1)
        found.found_inf = torch.tensor(0.0)
        for _ in range(2):
            for p in parameters:
                p.grad = torch.ones_like(p)
            with Launches() as launches:
                found.step()
        counts.append(launches.count)
    few, many = counts
    assert few == many < 60


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_left_out_changes_nothing(fused, monkeypatch):
    for name in () if fused else ("add_", "lerp", "lerp_", "mul_", "sub_"):
        monkeypatch.setattr(each, name, each._loop(name))
    parameters = [nn.Parameter(x) for x in grads([(16, 20), (16, 16), (5,)], 0)]
    found = Muon([{"params": parameters[2:]}, {"params": parameters[:2], "muon": True}], lr=0.1, fused=True)

    def step(seed, skip):
        for p, g in zip(parameters, grads([p.shape for p in parameters], seed), strict=True):
            p.grad = g * math.nan if skip else g
        found.found_inf = torch.tensor(float(skip))
        found.step()

    def state():
        moments = [x.clone() for p in parameters for x in found.state[p].values()]
        return [p.detach().clone() for p in parameters] + moments

    step(1, False)
    before = state()
    step(2, True)
    assert all(torch.equal(a, b) for a, b in zip(state(), before, strict=True))
    step(3, False)
    after = state()
    assert not any(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert [float(found.state[p]["step"]) for p in parameters] == [2, 2, 2]


def test_a_step_counts_and_returns_what_its_closure_does():
    layer = nn.Linear(16, 16)
    found = build("muon", layer, [], 0.1, 0.0)
    for _ in range(3):
        layer.weight.grad, layer.bias.grad = torch.ones_like(layer.weight), torch.ones_like(layer.bias)
        assert found.step(lambda: 7.0) == 7.0
    assert [float(found.state[p]["step"]) for p in layer.parameters()] == [3, 3]


@pytest.mark.slow
def test_a_run_goes_on_with_the_same_bits(tmp_path):
    options = {**MUON, "train__steps": 8, "train__checkpoint_every": 4}
    ends = []
    for name in ("one", "two"):
        run = train(tiny(**options), str(tmp_path / name), quiet=True)
        if name == "two":
            (run.folder / "trainer.safetensors").unlink()  # the state of step 4 is left
            train(tiny(**options), str(run.folder), quiet=True)
        ends.append(load_tensors(run.folder / "trainer.safetensors")[0])
    one, two = ends
    assert one.keys() == two.keys() and all(torch.equal(x, two[name]) for name, x in one.items())


def test_the_first_moment_alone_is_kept_and_restored(tmp_path):
    config = tiny(**MUON, train__steps=2)
    run = train(config, str(tmp_path / "run"), quiet=True)
    trainer = Trainer(config, run, build_data(config))
    trainer.restore()
    kept, about = load_tensors(run.folder / "trainer.safetensors")
    again = trainer.state()
    assert again.keys() == kept.keys() and all(torch.equal(x, again[name]) for name, x in kept.items())
    single = with_one_moment(trainer.optimizer)
    assert single == matrices(trainer.model) and single
    assert sum(name.endswith(".exp_avg_sq") for name in kept) == len({*trainer.model.parameters()} - single)
    name = next(n for n in kept if n.endswith(".exp_avg") and f"{n}_sq" not in kept)
    without, with_second = {n: x for n, x in kept.items() if n != name}, {**kept, f"{name}_sq": kept[name]}
    for spoilt in (without, with_second):
        with pytest.raises(MmfastError, match=name.rsplit(".", 1)[1]):
            check(spoilt, about, 2, trainer.kept, run.folder, single)


def precisions():
    """In which float32 matrices are multiplied, by the names that this torch has."""
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        return torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision
    return torch.get_float32_matmul_precision()


class Fails(Exception):
    pass


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("asked", ["high", "medium", "highest"])
def test_matrices_are_multiplied_in_float32_whatever_is_asked_for(asked, fails, monkeypatch):
    """And afterwards as before. In TF32 the updates of matrices of low rank would be half wrong."""
    seen, layer = [], nn.Linear(16, 16)

    def watched(matrices):
        seen.append(precisions())
        if fails:
            raise Fails
        return orthogonal(matrices)

    monkeypatch.setattr(optimizer, "orthogonal", watched)
    muon = build("muon", layer, [], 0.1, 0.0)
    layer(torch.ones(1, 16)).sum().backward()
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        highest = precisions()
        torch.set_float32_matmul_precision(asked)
        as_asked = precisions()
        with contextlib.suppress(Fails):
            muon.step()
        assert seen == [highest] and precisions() == as_asked and torch.get_float32_matmul_precision() == asked
    finally:
        torch.set_float32_matmul_precision(before)


def recorded(folder, words):
    """Train, and write how many matrices in shards were gathered before each call of `orthogonal`, at most."""
    gathered, most = [], []
    shards, real = optimizer.shards, optimizer.orthogonal

    def watched_full(x):
        gathered.extend([x.shape] * shards.is_shard(x))
        return shards.full(x)

    def watched(matrices):
        most.append(len(gathered))
        gathered.clear()
        return real(matrices)

    optimizer.shards = SimpleNamespace(**{**vars(shards), "full": watched_full})  # not where states are saved
    optimizer.orthogonal = watched
    status = main(words)
    with open(f"{folder}/most", "a") as file:
        file.write(f"{max(most)}\n")
    return status


@pytest.mark.slow
def test_weights_in_shards_train_as_whole_ones_do(fsdp2, tmp_path):
    options = {**MUON, "train__grad_clip": 0.1, "train__shard": "true", "train__weight_decay": 0.1}
    assert main(command(tmp_path / "one", 12, **options)) == 0
    Job(2, tmp_path, recorded, tmp_path, command(tmp_path / "run", 12, **options)).done()
    assert (tmp_path / "most").read_text() == "1\n1\n"  # no rank has more than one of them whole
    assert_one_curve(tmp_path / "run", tmp_path / "one")
    a, b = (load_tensors(tmp_path / name / "trainer.safetensors")[0] for name in ("run", "one"))
    assert a.keys() == b.keys()
    for name, x in a.items():
        torch.testing.assert_close(x, b[name], rtol=0, atol=1e-4, msg=name)
