"""Pairs of schedulers, mmfast's and diffusers', and how their steps are compared.

Where a step is noisy, diffusers is given the noise that ours draws: ops.randn of the seed that the torch generator
gives next. Results are compared in proportion to the terms they are sums of: two float32 results that are rightly
rounded part by part differ by a few 2^-24 of those.
"""

import optional
import pytest
import torch

from mmfast import ops

theirs = optional.diffusers()
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


def answers(a, b, model_output, t, sample, fused=True, **options):
    """a.step and b.step, b with the noise that a draws; fails if a left the answer to diffusers."""
    noise = drawn(sample.shape, options.get("generator"), sample.dtype)
    kind = theirs.DDPMScheduler if isinstance(b, theirs.DDPMScheduler) else theirs.DDIMScheduler
    with pytest.MonkeyPatch.context() as patch:
        if fused:
            patch.setattr(kind, "step", None)  # as a's superclass, it is not to be called
        found = a.step(model_output, t, sample, **options)
    with pytest.MonkeyPatch.context() as patch:
        for module in (scheduling_ddpm, scheduling_ddim):
            patch.setattr(module, "randn_tensor", lambda *_, **__: noise)
        return found, b.step(model_output, t, sample, **options)


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
