"""mmfast.diffusers against diffusers itself: the same configs, the same calls, the same answers but for the noise.

Where a step is noisy, diffusers is given the noise that ours draws: ops.randn of the seed that the torch generator
gives next. Results are compared in proportion to the terms they are sums of: two float32 results that are rightly
rounded part by part differ by a few 2^-24 of those.
"""

import copy
import itertools
import pickle
import sys
import types

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmfast import ops
from mmfast.errors import BackendError

theirs = pytest.importorskip("diffusers")
from diffusers.schedulers import scheduling_ddim, scheduling_ddpm  # noqa: E402

from mmfast import diffusers as ours  # noqa: E402

BOTH = pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler"])
SHAPE = (3, 2, 5, 4)
ROUNDING = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def tensors(count, shape=SHAPE, dtype=torch.float32, seed=0):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def pair(name, steps=None, **config):
    a, b = getattr(ours, name)(**config), getattr(theirs, name)(**config)
    if steps:
        a.set_timesteps(steps), b.set_timesteps(steps)
    return a, b


def drawn(shape, generator=None, dtype=torch.float32):
    """The noise of our next step, by its definition; the generator is left as it was."""
    state = (generator or torch.default_generator).get_state()
    seed = int(torch.empty((), dtype=torch.int64).random_(-(1 << 63), None, generator=generator))
    (generator or torch.default_generator).set_state(state)
    return ops.randn(shape, seed=seed, dtype=dtype)


def test_a_registered_backend_is_noticed(monkeypatch):
    """What serves a device is asked anew."""
    backends = ops.backends
    for name in ("MODULES", "LOOKING"):
        monkeypatch.setattr(backends, name, dict(getattr(backends, name)))
    monkeypatch.setattr(backends, "_ADDED", [])
    away = torch.device("meta")
    assert not backends.has_kernel(away) and not ours._fits(*tensors(2).to(away))
    module = types.ModuleType("mine")
    module.name, module.devices, module.unavailable = "mine", ("meta",), lambda: None
    monkeypatch.setitem(sys.modules, "mine", module)
    try:
        backends.register("mine", "mine")
        assert ours._fits(*tensors(2).to(away))
    finally:
        monkeypatch.undo()
        for cached in (backends.load, backends.automatic, backends.forced, backends.has_kernel):
            cached.cache_clear()


@pytest.fixture
def answers(monkeypatch):
    """answers(a, b, ...): a.step and b.step, b with the noise that a draws; fails if a left the answer to diffusers."""

    def call(a, b, model_output, t, sample, fused=True, **options):
        noise = drawn(sample.shape, options.get("generator"), sample.dtype)
        kind = theirs.DDPMScheduler if isinstance(b, theirs.DDPMScheduler) else theirs.DDIMScheduler
        with monkeypatch.context() as patch:
            if fused:
                patch.setattr(kind, "step", None)  # as a's superclass, it is not to be called
            found = a.step(model_output, t, sample, **options)
        with monkeypatch.context() as patch:
            for module in (scheduling_ddpm, scheduling_ddim):
                patch.setattr(module, "randn_tensor", lambda *_, **__: noise)
            return found, b.step(model_output, t, sample, **options)

    return call


def magnitude(b, t, kind):
    """The largest factor that x_0 is made with: 1 / sqrt(abar_t) from epsilon, and at most 1 otherwise."""
    return float(b.alphas_cumprod[t]) ** -0.5 if kind == "epsilon" else 1.0


def agree(found, expected, factor=1.0, units=32, dtype=torch.float32):
    """To `units` roundings of sums whose terms are of size `factor` (times |sample|, |model_output| < 5)."""
    assert type(found) is type(expected) and list(found) == list(expected)
    bound = units * 2.0**-24 * 5 * factor if dtype == torch.float32 else units * ROUNDING[dtype] * 5 * factor
    for name in ("prev_sample", "pred_original_sample"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=max(bound, 1e-14))
        assert getattr(found, name) is found[name]


# --- step: what it computes -----------------------------------------------------------------------------------

CONFIGS = st.fixed_dictionaries(
    {
        "prediction_type": st.sampled_from(["epsilon", "sample", "v_prediction"]),
        "clip_sample": st.booleans(),
        "clip_sample_range": st.sampled_from([0.5, 1.0, 3.0]),
        "beta_schedule": st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2"]),
        "timestep_spacing": st.sampled_from(["leading", "linspace", "trailing"]),
        "steps_offset": st.sampled_from([0, 1]),
        "num_train_timesteps": st.sampled_from([20, 250, 1000]),
        "rescale_betas_zero_snr": st.booleans(),
    }
)


def some(timesteps):
    """The ends and a few between, in order."""
    chosen = [*timesteps[:2], *timesteps[len(timesteps) // 2 :][:1], *timesteps[-2:]]
    return list(dict.fromkeys(chosen))


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "fixed_small_log"])
@given(config=CONFIGS, steps=st.sampled_from([None, 1, 7, 20]))
def test_ddpm_step(variance, config, steps):
    a, b = pair("DDPMScheduler", steps, variance_type=variance, **config)
    z, e = tensors(2)
    with pytest.MonkeyPatch.context() as patch:
        for t in some(b.timesteps.tolist()):
            if t >= len(b.alphas_cumprod) or (
                float(b.alphas_cumprod[t]) == 0 and config["prediction_type"] == "epsilon"
            ):
                continue  # beyond the table, or x_0 is z / 0: diffusers answers
            noise = drawn(SHAPE)
            patch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, noise=noise, **__: noise)
            agree(a.step(e, t, z), b.step(e, t, z), magnitude(b, t, config["prediction_type"]))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@given(config=CONFIGS, steps=st.sampled_from([1, 7, 20]), clipped=st.booleans(), to_one=st.booleans())
def test_ddim_step(eta, config, steps, clipped, to_one):
    a, b = pair("DDIMScheduler", steps, set_alpha_to_one=to_one, **config)
    z, e = tensors(2)
    options = {"eta": eta, "use_clipped_model_output": clipped}
    with pytest.MonkeyPatch.context() as patch:
        for t in some(b.timesteps.tolist()):
            if t >= len(b.alphas_cumprod) or (
                float(b.alphas_cumprod[t]) == 0 and config["prediction_type"] == "epsilon"
            ):
                continue
            noise = drawn(SHAPE)
            patch.setattr(scheduling_ddim, "randn_tensor", lambda *_, noise=noise, **__: noise)
            # With set_alpha_to_one off and t = 0, 1 - abar_t is small and divides for "sample".
            factor = magnitude(b, t, config["prediction_type"]) + float(1 - b.alphas_cumprod[t]) ** -0.5
            found, expected = a.step(e, t, z, **options), b.step(e, t, z, **options)
            if expected.prev_sample.isnan().any():
                assert found.prev_sample.isnan().any()  # sqrt(1 - abar_s - sigma^2) of less than nothing
            else:
                agree(found, expected, factor)


@BOTH
def test_the_kernels_answer(name, answers):
    """The usual calls are not left to diffusers: its own step is out of reach."""
    a, b = pair(name, 10)
    z, e = tensors(2)
    for t in b.timesteps:
        agree(*answers(a, b, e, t, z), magnitude(b, int(t), "epsilon"))
    options = {"eta": 1.0} if name == "DDIMScheduler" else {}
    agree(*answers(a, b, e, 500, z, generator=torch.Generator().manual_seed(3), **options), 5)


def test_the_noise_is_the_generators_with_the_exact_deviation():
    """(ours - their mean) / sigma is ops.randn of the seed drawn, and sigma the closed form's."""
    a, b = pair("DDPMScheduler", 50, variance_type="fixed_small")
    z, e = tensors(2, (8, 3, 16, 16))
    abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    for t in (980, 500, 20):
        expected = drawn(z.shape)
        found = a.step(e, t, z).prev_sample.double()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, **__: torch.zeros(z.shape))
            mean = b.step(e, t, z).prev_sample.double()
        sigma = ((1 - abar[t - 20]) / (1 - abar[t]) * (1 - abar[t] / abar[t - 20])).sqrt()
        # sigma in float32 tables: 1 - a is 2e-3 at least, so has errors of 2^-23 / 2e-3, which a square root halves.
        torch.testing.assert_close(
            (found - mean) / sigma, expected.double(), rtol=1e-4, atol=32 * 2.0**-24 / sigma.item()
        )


@BOTH
@pytest.mark.parametrize("dtype", list(ROUNDING), ids=lambda d: str(d)[6:])
def test_types(name, dtype, answers):
    """Every float in and out; the halves no further from float64 than twice what diffusers is."""
    a, b = pair(name, 10)
    z, e = tensors(2, (4, 3, 8, 8), dtype)
    exact = b.step(e.double(), 0, z.double())
    found, expected = answers(a, b, e, 0, z)
    assert found.prev_sample.dtype == found.pred_original_sample.dtype == dtype
    for key in ("prev_sample", "pred_original_sample"):
        error = (found[key].double() - exact[key]).abs().max()
        limit = (expected[key].double() - exact[key]).abs().max()
        assert error <= 2 * limit + 2 * ROUNDING[dtype] * exact[key].abs().max()
    eps = tensors(1, (4, 3, 8, 8), dtype, seed=5)[0]
    t = torch.tensor([0, 3, 500, 999])
    exact = b.add_noise(z.double(), eps.double(), t)
    error = (a.add_noise(z, eps, t).double() - exact).abs().max()
    assert error <= 2 * ROUNDING[dtype] * exact.abs().max()


@pytest.mark.parametrize("shape", [(1, 1), (1, 3, 8, 8), (2, 5), (0, 3, 4, 4), (3, 2, 4, 5, 6), (7, 1, 1, 1)])
@BOTH
def test_shapes(name, shape, answers):
    a, b = pair(name, 10)
    z, e = tensors(2, shape)
    agree(*answers(a, b, e, 400, z), magnitude(b, 400, "epsilon"))


@BOTH
def test_layouts(name, answers):
    """Samples and predictions that do not lie contiguous, in any mixture, and one broadcast."""
    a, b = pair(name, 10)
    z, e = tensors(2, (4, 6, 8, 8))
    views = [
        lambda x: x[:, ::2],
        lambda x: x.transpose(2, 3)[:, :3],
        lambda x: x[:, :3].contiguous(memory_format=torch.channels_last),
        lambda x: x[:1, :3].expand(4, 3, 8, 8),
        lambda x: x[:, 3:].flip(0),
    ]
    for of_z, of_e in itertools.product(views, views):
        agree(*answers(a, b, of_e(e), 400, of_z(z)), magnitude(b, 400, "epsilon"))
        t = torch.tensor([1, 999, 7, 0])
        torch.testing.assert_close(
            a.add_noise(of_z(z), of_e(e), t), b.add_noise(of_z(z), of_e(e), t), rtol=1e-6, atol=1e-6
        )


# --- add_noise and get_velocity -------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("method", ["add_noise", "get_velocity"])
@given(
    timesteps=st.lists(st.integers(0, 999), min_size=4, max_size=4),
    schedule=st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2"]),
    zero=st.booleans(),
    dtype=st.sampled_from([torch.int64, torch.int32]),
)
def test_forward(name, method, timesteps, schedule, zero, dtype):
    a, b = pair(name, beta_schedule=schedule, rescale_betas_zero_snr=zero)
    z, e = tensors(2, (4, 2, 3, 3))
    t = torch.tensor(timesteps, dtype=dtype)
    found, expected = getattr(a, method)(z, e, t), getattr(b, method)(z, e, t)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@BOTH
@pytest.mark.parametrize("method", ["add_noise", "get_velocity"])
def test_timesteps_of_every_form(name, method):
    """One for all, as a number or in a list; strided; counted from the end. And what they refuse, refused."""
    a, b = pair(name)
    z, e = tensors(2, (4, 2, 3, 3))
    every = torch.arange(0, 40, 5)
    for t in (torch.tensor(7), torch.tensor([7]), every[::2], torch.tensor([-1, 0, 3, -1000]), every[:4].reshape(2, 2)):
        expected = getattr(b, method)(z, e, t)
        torch.testing.assert_close(getattr(a, method)(z, e, t), expected, rtol=1e-6, atol=1e-6)
    for bad in (torch.tensor([0, 1, 2, 1000]), torch.tensor([0, 1]), torch.tensor([0.0, 1, 2, 3]), 3):
        with pytest.raises(Exception) as expected:
            getattr(b, method)(z, e, bad)
        with pytest.raises(expected.type):
            getattr(a, method)(z, e, bad)


@BOTH
@pytest.mark.parametrize("method", ["add_noise", "get_velocity"])
def test_gradients(name, method):
    """As a loss passes them on to what the samples and the noise were made from."""
    a, b = pair(name)
    t = torch.tensor([0, 20, 999])
    grads = []
    for scheduler in (a, b):
        z, e = (x.clone().requires_grad_() for x in tensors(2))
        getattr(scheduler, method)(z, e, t).square().sum().backward()
        grads.append((z.grad, e.grad))
    for found, expected in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@BOTH
def test_gradients_through_a_step(name):
    a, b = pair(name, 10)
    grads = []
    for scheduler in (a, b):
        z, e = (x.clone().requires_grad_() for x in tensors(2))
        output = scheduler.step(e, 0, z)  # no noise
        (output.prev_sample.square().sum() + output.pred_original_sample.sum()).backward()
        grads.append((z.grad, e.grad))
    for found, expected in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


# --- generators -----------------------------------------------------------------------------------------------


@BOTH
def test_seeds_repeat_a_step(name):
    a, _ = pair(name, 10)
    z, e = tensors(2)
    options = {"eta": 1.0} if name == "DDIMScheduler" else {}

    def step(**more):
        return a.step(e, 500, z, **options, **more).prev_sample

    torch.manual_seed(4)
    first, second = step(), step()
    torch.manual_seed(4)
    assert torch.equal(step(), first) and not torch.equal(first, second)
    generator = torch.Generator().manual_seed(4)
    assert torch.equal(step(generator=generator), first) and torch.equal(step(generator=generator), second)
    assert torch.equal(step(generator=[torch.Generator().manual_seed(4)]), first)
    before = torch.get_rng_state()
    step(generator=generator)
    assert torch.equal(torch.get_rng_state(), before)
    # Nothing is drawn where there is no noise.
    a.step(e, 0, z) if name == "DDPMScheduler" else a.step(e, 500, z)
    assert torch.equal(torch.get_rng_state(), before)


@BOTH
def test_a_list_of_generators_serves_each_sample_by_itself(name):
    """A sample's noise is its own generator's: the same alone and in any batch, and of another seed another."""
    a, _ = pair(name, 10)
    z, e = tensors(2, (4, 3, 16, 16))
    options = {"eta": 1.0} if name == "DDIMScheduler" else {}

    def step(seeds, z, e):
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        return a.step(e, 500, z, generator=generators, **options).prev_sample

    whole = step([5, 6, 7, 8], z, e)
    assert torch.equal(step([7, 6], z[[2, 1]], e[[2, 1]]), whole[[2, 1]])
    assert torch.equal(step([5, 9, 7, 8], z, e)[[0, 2, 3]], whole[[0, 2, 3]])
    alike = step([5, 5, 5, 6], z[:1].expand_as(z), e[:1].expand_as(e))
    assert torch.equal(alike[0], alike[1]) and not torch.equal(alike[0], alike[3])
    quiet = a.step(e, 500, z, **{**options, "generator": torch.Generator().manual_seed(0)}).prev_sample
    noise = (whole - quiet).flatten(1)  # of two independent normals
    assert noise.std() > 0.1 and (torch.corrcoef(noise) - torch.eye(4)).abs().max() < 6 / 768**0.5
    with pytest.raises(IndexError):
        step([1, 2], z, e)


# --- what is left to diffusers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        {"thresholding": True},
        {"variance_type": "learned"},
        {"variance_type": "learned_range"},
        {"clip_sample": True, "clip_sample_range": 0.0},
        {"rescale_betas_zero_snr": True},
    ],
    ids=str,
)
def test_configs_left_to_diffusers(config):
    a, b = pair("DDPMScheduler", 10, timestep_spacing="trailing", **config)
    z, e = tensors(2)
    if "learned" in config.get("variance_type", ""):
        e = torch.cat((e, e.sigmoid()), 1)
    results = []
    for scheduler in (a, b):
        torch.manual_seed(2)
        results.append(scheduler.step(e, 999, z))
    for key in results[1]:
        assert torch.equal(results[0][key].nan_to_num(7), results[1][key].nan_to_num(7))


def test_calls_left_to_diffusers():
    """Its noise handed in, other tensors, an eta that is none of ours, timesteps that it does not know."""
    a, b = pair("DDIMScheduler", 10)
    z, e = tensors(2)
    noise = tensors(1, seed=3)[0]
    calls = [
        ((e, 500, z), {"eta": 1.0, "variance_noise": noise}),
        ((e, 500, z), {"eta": torch.tensor(0.0)}),
        ((e[:1], 500, z), {}),
        ((e.double(), 500, z), {}),
        ((e, torch.tensor([500]), z), {}),
        ((e, -1, z), {}),
    ]
    for args, options in calls:
        found, expected = a.step(*args, **options), b.step(*args, **options)
        torch.testing.assert_close(found.prev_sample, expected.prev_sample, rtol=1e-5, atol=1e-5)
        assert found.prev_sample.dtype == expected.prev_sample.dtype


@BOTH
def test_bad_input_is_refused_as_theirs(name):
    a, b = pair(name, 10)
    z, e = tensors(2)
    for args in ((e, 1000, z), (e, 500.0, z), (e, None, z), (e[:, :1, :1], 500, z[:2]), (None, 500, z), (e, "5", z)):
        with pytest.raises(Exception) as expected:
            b.step(*args)
        with pytest.raises(expected.type):
            a.step(*args)
    with pytest.raises(ValueError, match="prediction_type"):
        pair(name, 10, prediction_type="score")[0].step(e, 500, z)
    if name == "DDIMScheduler":
        with pytest.raises(ValueError, match="set_timesteps"):
            ours.DDIMScheduler().step(e, 5, z)


def test_a_backend_that_cannot_run_is_not_hidden(monkeypatch):
    from mmfast.ops import backends

    monkeypatch.setattr(backends, "_FORCED", "nonsense")
    monkeypatch.setattr(backends, "LOOKING", backends._looking())
    a, _ = pair("DDPMScheduler")
    z, e = tensors(2)
    with pytest.raises(BackendError):
        a.add_noise(z, e, torch.tensor([1, 2, 3]))
    with pytest.raises(BackendError):
        a.step(e, 5, z)


@BOTH
def test_nan_goes_on(name):
    a, b = pair(name, 10)
    z, e = tensors(2)
    e[0, 0, 0, 0] = torch.nan
    found, expected = a.step(e, 0, z), b.step(e, 0, z)
    for key in expected:
        assert torch.equal(found[key].isnan(), expected[key].isnan())


# --- the tables follow the scheduler --------------------------------------------------------------------------


@BOTH
def test_whatever_changes_is_seen(name, answers):
    """New timesteps, a changed config, tables replaced or written into: the next step is of the new state."""
    a, b = pair(name, 10)
    z, e = tensors(2)

    def same(t):
        agree(*answers(a, b, e, t, z), magnitude(b, t, "epsilon"))

    same(400)
    for s in (a, b):
        s.set_timesteps(4)
    same(500)
    for s in (a, b):
        s.alphas_cumprod = s.alphas_cumprod**2
    same(500)
    for s in (a, b):
        s.alphas_cumprod[500] *= 0.5
    same(500)
    for s in (a, b):
        s.register_to_config(prediction_type="sample", clip_sample=False)
    agree(*answers(a, b, e, 500, z))
    t = torch.tensor([500, 1, 2])
    torch.testing.assert_close(a.add_noise(z, e, t), b.add_noise(z, e, t), rtol=1e-6, atol=1e-6)
    if name == "DDPMScheduler":
        for s in (a, b):
            s.set_timesteps(timesteps=[900, 300, 2])
        for t in (900, 300, 2):
            agree(*answers(a, b, e, t, z))
        with pytest.raises(IndexError):
            a.step(e, 500, z)


@BOTH
def test_in_inference_mode_and_out_of_it(name):
    z, e = tensors(2)
    with torch.inference_mode():
        a, b = pair(name, 10)
        first = a.step(e, 0, z).prev_sample
    torch.testing.assert_close(a.step(e, 0, z).prev_sample, first, rtol=0, atol=0)
    torch.testing.assert_close(first, b.step(e, 0, z).prev_sample, rtol=1e-5, atol=1e-5)
    t = torch.tensor([0, 20, 999])
    with torch.inference_mode():
        a.add_noise(z, e, t)
    z.requires_grad_()
    a.add_noise(z, e, t).sum().backward()  # by the tables made in there
    a.step(e, 0, z).prev_sample.sum().backward()


# --- as a diffusers class -------------------------------------------------------------------------------------


@BOTH
def test_class_and_config(name):
    kind, base = getattr(ours, name), getattr(theirs, name)
    assert issubclass(kind, base) and kind.__name__ == name
    assert (kind._compatibles, kind.order, kind.config_name) == (base._compatibles, base.order, base.config_name)
    a, b = pair(name, beta_end=0.03, clip_sample=False)
    assert dict(a.config) == dict(b.config) and set(a.compatibles) == set(b.compatibles) and len(a) == len(b)
    for source in (a, b):
        assert dict(kind.from_config(source.config).config) == dict(b.config)
        assert dict(base.from_config(source.config).config) == dict(b.config)
    other = theirs.DPMSolverMultistepScheduler.from_config(a.config)
    assert other.config.beta_end == 0.03 and kind.from_config(other.config).config.beta_end == 0.03


@BOTH
def test_saved_and_loaded(name, tmp_path):
    """Either side reads what the other writes; and copies and pickles are schedulers too."""
    a, b = pair(name, prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2")
    a.save_pretrained(tmp_path / "ours"), b.save_pretrained(tmp_path / "theirs")
    assert (tmp_path / "ours/scheduler_config.json").read_text() == (
        tmp_path / "theirs/scheduler_config.json"
    ).read_text()
    z, e = tensors(2)
    copies = [
        getattr(kind, name).from_pretrained(tmp_path / where) for kind in (ours, theirs) for where in ("ours", "theirs")
    ]
    a.set_timesteps(10), a.step(e, 0, z)
    for other in (*copies, copy.deepcopy(a), pickle.loads(pickle.dumps(a))):
        other.set_timesteps(10)
        torch.testing.assert_close(other.step(e, 0, z)[0], a.step(e, 0, z)[0], rtol=1e-5, atol=1e-5)


@BOTH
def test_return_types(name):
    a, b = pair(name, 10)
    z, e = tensors(2)
    found, expected = a.step(e, 0, z), b.step(e, 0, z)
    assert (
        type(found) is type(expected)
        and found.keys() == expected.keys()
        and vars(found).keys() == vars(expected).keys()
    )
    assert [x.shape for x in found.to_tuple()] == [x.shape for x in expected.to_tuple()]
    as_tuple = a.step(e, 0, z, return_dict=False)
    assert type(as_tuple) is tuple and all(torch.equal(x, y) for x, y in zip(as_tuple, found.to_tuple(), strict=True))
    again = pickle.loads(pickle.dumps(found))
    assert torch.equal(again.prev_sample, found.prev_sample)


def unet():
    torch.manual_seed(0)
    return theirs.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip


def images(pipeline, seed, generators=1, **options):
    pipeline.set_progress_bar_config(disable=True)
    each = [torch.Generator().manual_seed(seed + i) for i in range(generators)]
    generator = each[0] if generators == 1 else each
    return torch.as_tensor(
        pipeline(batch_size=2, num_inference_steps=5, generator=generator, output_type="np", **options).images
    )


def test_ddim_pipeline():
    """Deterministic, so theirs to the pixel. The pipeline makes its scheduler anew, so ours is put in afterwards."""
    a, b = (theirs.DDIMPipeline(unet(), kind()) for kind in (ours.DDIMScheduler, theirs.DDIMScheduler))
    torch.testing.assert_close(images(a, 1), images(b, 1), rtol=0, atol=1e-5)
    a.scheduler = ours.DDIMScheduler.from_config(a.scheduler.config)
    torch.testing.assert_close(images(a, 1), images(b, 1), rtol=0, atol=1e-5)
    assert torch.equal(images(a, 1, eta=1.0), images(a, 1, eta=1.0))
    assert not torch.equal(images(a, 1, eta=1.0), images(a, 2, eta=1.0))


def test_ddpm_pipeline(tmp_path):
    """Repeats under a seed, one generator or a list; what it saves needs no mmfast, and takes our scheduler again."""
    pipeline = theirs.DDPMPipeline(unet(), ours.DDPMScheduler())
    assert type(pipeline.scheduler) is ours.DDPMScheduler
    first = images(pipeline, 1)
    assert first.shape == (2, 8, 8, 1) and torch.equal(first, images(pipeline, 1))
    assert not torch.equal(first, images(pipeline, 2))
    both = images(pipeline, 1, generators=2)
    assert torch.equal(both, images(pipeline, 1, generators=2))
    pipeline.save_pretrained(tmp_path)
    assert "mmfast" not in (tmp_path / "model_index.json").read_text()
    assert type(theirs.DDPMPipeline.from_pretrained(tmp_path).scheduler) is theirs.DDPMScheduler
    scheduler = ours.DDPMScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    loaded = theirs.DDPMPipeline.from_pretrained(tmp_path, scheduler=scheduler)
    assert type(loaded.scheduler) is ours.DDPMScheduler and torch.equal(first, images(loaded, 1))


@BOTH
@pytest.mark.parametrize("used", [False, True])
def test_compiled(name, used):
    """Within torch.compile it is diffusers' ops that are traced, in one graph, whatever was called before."""
    # With timesteps set, diffusers' own DDPM step breaks the graph.
    a, b = pair(name, 10 if name == "DDIMScheduler" else None)
    z, e = tensors(2)
    t = torch.tensor([0, 500, 999])
    if used:
        a.add_noise(z, e, t), a.step(e, 0, z)

    def both(z, e, t):
        return a.add_noise(z, e, t) * 2 + a.step(e, 0, z).prev_sample

    torch._dynamo.reset()
    found = torch.compile(both, backend="eager", fullgraph=True)(z, e, t)
    torch.testing.assert_close(found, b.add_noise(z, e, t) * 2 + b.step(e, 0, z).prev_sample, rtol=1e-5, atol=1e-5)
    agree(a.step(e, 0, z), b.step(e, 0, z))  # and outside it goes on
