"""mmfast.diffusers as diffusers' classes: what is left to theirs, what changes a table, files, pipelines."""

import copy
import pickle
import sys
import types

import pytest
import torch
from schedulers import BOTH, agree, answers, magnitude, ours, pair, tensors, theirs

from mmfast import ops
from mmfast.errors import BackendError


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
def test_whatever_changes_is_seen(name):
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


@pytest.mark.slow
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
