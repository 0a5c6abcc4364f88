"""mmfast.diffusers against diffusers itself: the same configs, the same calls, the same answers but for the noise."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from schedulers import (
    BOTH,
    ROUNDING,
    SHAPE,
    agree,
    answers,
    drawn,
    magnitude,
    pair,
    scheduling_ddim,
    scheduling_ddpm,
    tensors,
)

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
def test_the_kernels_answer(name):
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
def test_types(name, dtype):
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
def test_shapes(name, shape):
    a, b = pair(name, 10)
    z, e = tensors(2, shape)
    agree(*answers(a, b, e, 400, z), magnitude(b, 400, "epsilon"))


@BOTH
def test_layouts(name):
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


def test_a_default_device_moves_no_table():
    """The schedulers' tables are on the host, whatever device torch makes new tensors on."""
    z, e = tensors(2)

    def stepped():
        scheduler = pair("DDIMScheduler", prediction_type="epsilon")[0]
        scheduler.set_timesteps(5)
        return lambda: scheduler.step(e, scheduler.timesteps[2], z).prev_sample

    expected, step = stepped()(), stepped()
    with torch.device("meta"):
        assert torch.equal(step(), expected)
