"""The schedule's tables: against diffusers, the kinds of weights, what a cast leaves alone, warnings and errors."""

import copy
import math
import warnings

import numpy as np
import optional
import pytest
import torch
import truth
from torch import nn

import mmfast
from mmfast import MmfastError, Schedule, Weight, ops

KINDS = ["none", "carried", "bridge", "shift", "constant"]
far = pytest.mark.filterwarnings("ignore:z_T is far")


@pytest.mark.parametrize(("name", "theirs"), [("linear", "linear"), ("cosine", "squaredcos_cap_v2")])
@pytest.mark.parametrize("T", [100, 1000])
@far
def test_against_diffusers(name, theirs, T):
    """Their alphas_cumprod[i] is our alpha_bar[i + 1]."""
    diffusers = optional.diffusers()
    found = getattr(Schedule, name)(T)
    expected = diffusers.DDPMScheduler(num_train_timesteps=T, beta_schedule=theirs).alphas_cumprod
    assert found.alpha_bar.dtype == torch.float64
    assert float(found.alpha_bar[0]) == 1.0
    # Theirs is a product of float32 numbers a = 1 - beta, with beta rounded (2^-24 against a) and two roundings more.
    table = found.alpha_bar.numpy()
    bound = np.cumsum(2.0**-24 * (table[:-1] / table[1:] + 2))
    assert (np.abs(expected.numpy() / table[1:] - 1) < bound).all()


@pytest.mark.parametrize("T", [1, 2, 50, 1000])
@far
def test_against_the_formulas(T):
    """The tables to float64, and what q_sample multiplies by."""
    np.testing.assert_allclose(Schedule.linear(T).alpha_bar.numpy(), truth.linear(T), rtol=1e-12)
    np.testing.assert_allclose(Schedule.cosine(T).alpha_bar.numpy(), truth.cosine(T), rtol=1e-10)
    np.testing.assert_allclose(
        Schedule.linear(T, beta_start=0.01, beta_end=0.2).alpha_bar.numpy(), truth.linear(T, 0.01, 0.2), rtol=1e-12
    )
    assert Schedule.cosine(T).T == T


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1.0, -0.3, 2.0])
@far
def test_weights(kind, scale):
    """Every kind's formula under both schedules, as a Weight and by its function."""
    for make, table in ((Schedule.linear, truth.linear(200)), (Schedule.cosine, truth.cosine(200))):
        for weight in (Weight(kind, scale), getattr(mmfast, kind)(*([] if kind == "none" else [scale]))):
            sched = make(200, {"label": weight})
            np.testing.assert_allclose(sched.W[:, 0].numpy(), truth.weight(kind, scale, table), rtol=1e-9, atol=1e-13)


@far
def test_a_scale_is_one_unless_it_is_given():
    for kind in KINDS[1:]:
        found = [Schedule.cosine(50, {"x": x}).W[:, 0].numpy() for x in (Weight(kind), getattr(mmfast, kind)())]
        for W in found:
            np.testing.assert_allclose(W, truth.weight(kind, 1.0, truth.cosine(50)), rtol=1e-9, atol=1e-13)


def test_the_kinds_are_as_the_design_says():
    """bridge: zero at both ends with its peak s between; carried: from s, with w_t = 0 all along; shift: to s."""
    sched = Schedule.cosine(1000, {"b": mmfast.bridge(2.0), "c": mmfast.carried(0.5)})
    bridge, carried = sched.W.T
    assert float(bridge[0]) == 0
    assert abs(float(bridge[-1])) < 1e-3
    assert float(bridge.max()) == pytest.approx(2.0, rel=1e-5)
    assert float(carried[0]) == 0.5
    j = mmfast.process.jump(sched, torch.arange(1, 1001))
    assert j.w[:, 1].abs().max() < 1e-12
    with pytest.warns(UserWarning, match="far"):
        shift = Schedule.cosine(1000, {"s": mmfast.shift(0.7)}).W[:, 0]
    assert float(shift[0]) == 0
    assert float(shift[-1]) == pytest.approx(0.7, abs=1e-3)


def test_users_own_tables():
    """alpha_bar as a list or a tensor; W as a table, a list or a function of alpha_bar, in the order given."""
    abar = [1.0, 0.9, 0.5, 0.01]
    table = torch.tensor([0.0, 0.1, 0.2, 0.05])
    weights = {"t": table, "f": lambda x: x * (1 - x), "l": [0.0, 0.3, 0.2, 0.0], "w": mmfast.none()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sched = Schedule(abar, weights)
        assert torch.equal(Schedule(torch.tensor(abar, dtype=torch.float64)).alpha_bar, sched.alpha_bar)
    assert sched.names == ("t", "f", "l", "w")
    expected = [table.double().tolist(), [x * (1 - x) for x in abar], weights["l"], [0.0] * 4]
    np.testing.assert_allclose(sched.W.T.numpy(), expected, rtol=0, atol=1e-15)
    # A copy: the table is the user's own.
    table[1] = 7
    assert float(sched.W[1, 0]) == pytest.approx(0.1)
    assert sched.index(("l", "t")) == [2, 0]


def test_constant_under_linear_warns_with_L0():
    """The paper's literal form: W_T = 114, and the warning says how many nats a dimension that is."""
    with pytest.warns(UserWarning, match="z_T is far") as caught:
        sched = Schedule.linear(1000, {"label": mmfast.constant()})
    assert len(caught) == 1
    abar = truth.linear(1000)
    W = truth.weight("constant", 1.0, abar)[-1]
    assert pytest.approx(114, abs=1) == W
    v = 1 - abar[-1]
    nats = 0.5 * (v + abar[-1] + W**2 - 1 - math.log(v))
    assert sched.prior_divergence() == pytest.approx(nats, rel=1e-9)
    message = str(caught[0].message)
    assert f"{nats:.3g} nats" in message
    assert "label 114" in message
    assert "\n" not in message
    assert caught[0].filename == __file__, "the warning should point at the caller's line"


def test_a_warning_points_at_the_callers_line():
    """From the constructor too."""
    with pytest.warns(UserWarning, match="z_T is far") as caught:
        Schedule([1.0, 0.9])
    assert caught[0].filename == __file__


@pytest.mark.parametrize("make", [Schedule.linear, Schedule.cosine])
@pytest.mark.parametrize("weight", [None, mmfast.carried(), mmfast.bridge(2.0), mmfast.none()])
def test_the_defaults_do_not_warn(make, weight):
    """z_T is near N(0, I) for the bounded weights: under 0.01 nats a dimension."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sched = make(1000, {} if weight is None else {"label": weight, "mask": weight})
    assert 0 <= sched.prior_divergence() < 0.01


@pytest.mark.parametrize(
    "cast",
    [
        lambda m: m.half(), lambda m: m.bfloat16(), lambda m: m.to(torch.bfloat16), lambda m: m.float(),
        lambda m: m.double(), lambda m: m.to("cpu", torch.float16), copy.deepcopy,
    ],
)  # fmt: skip
def test_casts_leave_the_tables_alone(cast):
    """Half precision of the model around it must not reach 1 - abar; the results are the same bits."""
    sched = Schedule.cosine(50, {"label": mmfast.bridge(2.0)})
    model = nn.ModuleDict({"schedule": sched, "layer": nn.Linear(2, 2)})
    z0, label = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    before = ops.q_sample(z0, {"label": label}, 7, sched, seed=1)[0]
    after = cast(model)["schedule"]
    assert after.alpha_bar.dtype == after.W.dtype == torch.float64
    np.testing.assert_allclose(after.alpha_bar.numpy(), truth.cosine(50), rtol=1e-10)
    assert torch.equal(ops.q_sample(z0, {"label": label}, 7, after, seed=1)[0], before)


def test_a_module_moves_the_tables():
    """.to(device) takes them along; meta stands for a GPU here."""
    sched = Schedule.cosine(50).to("meta")
    assert {buffer.device.type for buffer in sched.buffers()} == {"meta"}
    assert sched.alpha_bar.dtype == torch.float64


@far
def test_tables_are_made_on_the_host_whatever_the_default_device():
    """meta stands for a GPU: it has no numbers."""
    with torch.device("meta"):
        found = [Schedule.linear(50), Schedule.cosine(50), Schedule([1.0, 0.5, 0.001])]
    for sched, table in zip(found, (truth.linear(50), truth.cosine(50), [1, 0.5, 0.001]), strict=True):
        np.testing.assert_allclose(sched.alpha_bar.numpy(), table, rtol=1e-10)


def test_checkpoints_hold_no_tables():
    """They follow from the config: a checkpoint that held them could disagree with it."""
    sched = Schedule.cosine(50, {"label": mmfast.bridge()})
    assert len(sched.state_dict()) == 0
    assert list(sched.parameters()) == []
    sched.load_state_dict({})


def test_float32_tables_are_derived_in_float64():
    """sqrt(1 - abar_1) would lose half its digits if 1 - abar were taken in float32."""
    sched = Schedule.linear(1000)
    z, _ = ops.q_sample(torch.zeros(1, 1), {}, 1, sched, noise=torch.ones(1, 1))
    assert float(z) == pytest.approx(math.sqrt(1e-4), rel=2**-23)


BAD = {
    "alpha_bar shape": (lambda: Schedule(torch.ones(2, 2)), "alpha_bar"),
    "alpha_bar too short": (lambda: Schedule([1.0]), "alpha_bar"),
    "alpha_bar empty": (lambda: Schedule([]), "alpha_bar"),
    "alpha_bar NaN": (lambda: Schedule([1.0, math.nan, 0.1]), "alpha_bar"),
    "alpha_bar above 1": (lambda: Schedule([1.0, 1.1]), "alpha_bar"),
    "alpha_bar negative": (lambda: Schedule([1.0, 0.5, -0.1]), "alpha_bar"),
    "alpha_bar without t = 0": (lambda: Schedule([0.9, 0.5]), "alpha_bar"),
    "alpha_bar rises": (lambda: Schedule([1.0, 0.5, 0.6]), "alpha_bar"),
    "alpha_bar does not move at first": (lambda: Schedule([1.0, 1.0, 0.5]), "alpha_bar"),
    "alpha_bar is zero before T": (lambda: Schedule([1.0, 0.5, 0.0, 0.0]), "alpha_bar"),
    "alpha_bar no table": (lambda: Schedule("linear"), "alpha_bar"),
    "T zero": (lambda: Schedule.cosine(0), "T"),
    "T negative": (lambda: Schedule.linear(-5), "T"),
    "T float": (lambda: Schedule.cosine(10.0), "T"),
    "T bool": (lambda: Schedule.cosine(True), "T"),
    "beta above 1": (lambda: Schedule.linear(10, beta_end=1.5), "alpha_bar"),
    "weights length": (lambda: Schedule.cosine(10, {"label": torch.zeros(10)}), "label"),
    "weights NaN": (lambda: Schedule.cosine(10, {"label": torch.full((11,), math.nan)}), "label"),
    "weights no weight": (lambda: Schedule.cosine(10, {"label": 2.0}), "label"),
    "weights kind as text": (lambda: Schedule.cosine(10, {"label": "bridge"}), "label"),
    "weights of a function": (lambda: Schedule.cosine(10, {"label": lambda x: x[1:]}), "label"),
    "weights of a function that returns None": (lambda: Schedule.cosine(10, {"label": lambda x: None}), "label"),
    "weights kind": (lambda: Schedule.cosine(10, {"label": Weight("brigde")}), "bridge"),
    "weights scale": (lambda: Schedule.cosine(10, {"label": mmfast.bridge(math.inf)}), "label"),
    "weights no mapping": (lambda: Schedule.cosine(10, [mmfast.bridge()]), "weights"),
    "index": (lambda: Schedule.cosine(10, {"label": mmfast.bridge()}).index(("labels",)), "labels"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors(name):
    """A ValueError or TypeError of one line that names the argument."""
    call, word = BAD[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises((ValueError, TypeError)) as caught:
            call()
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert issubclass(MmfastError, ValueError)
