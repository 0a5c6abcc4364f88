"""Latents in the place of an image's pixels: what is encoded and decoded where, and what cannot be done with them."""

import copy
import re

import numpy as np
import optional
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mmfast
from mmfast import autoencoders, trust
from mmfast import config as configs
from mmfast import evaluate as evaluation
from mmfast.autoencoders import Autoencoder, AutoencoderSpec
from mmfast.build import build_data, build_model
from mmfast.errors import MmfastError
from mmfast.evaluate import evaluate
from mmfast.generate import generate
from mmfast.likelihood import bound
from mmfast.training import train
from mmfast.training.objective import losses


class Cells:
    """The exact one: cells of 2 x 2 pixels as four channels, four times as large and one to the side."""

    def encode(self, x):
        return 4 * F.pixel_unshuffle(x, 2) + 1

    def decode(self, z):
        return F.pixel_shuffle((z - 1) / 4, 2)


class Half(Cells):
    def decode(self, z):
        return super().decode(z)[..., :4]


def cells():
    return Cells()


def half():
    return Half()


def no_decoder():
    return nn.Linear(1, 1)


ME = __name__
OWN = {"network": f"{ME}:cells", "factor": 0.25, "shift": 1.0}


@pytest.fixture(autouse=True)
def allowed(monkeypatch):
    monkeypatch.setattr(trust, "_allowed", {("", f"{ME}:{name}") for name in ("cells", "half", "no_decoder", "absent")})


def made(autoencoder=OWN, more=(), **beside):
    image = {"kind": "image", "channels": 1, "size": 8, **({"autoencoder": autoencoder} if autoencoder else {})}
    plain = {
        "modalities": {"image": image, "label": {"kind": "label", "classes": 10, "weight": {"kind": "none"}}, **beside},
        "backbone": {"kind": "unet", "channels": 8, "multipliers": [1, 2], "blocks": 1},
        "data": {"kind": "digits"},
        "train": {"batch_size": 8, "steps": 2, "sample_every": 0, "tensorboard": False, "device": "cpu"},
        "sample": {"steps": 2, "count": 2},
        "evaluate": {"samples": 0},
    }
    config = configs.from_plain(plain, "test", more)
    return build_model(config), config


def moved(model):
    torch.manual_seed(0)
    for part in (model.backbone, model.out):
        for p in part.parameters():
            nn.init.normal_(p, std=0.1)
    return model


def kl(folder, **options):
    """diffusers' AutoencoderKL, small, at random weights: 8 x 8 pixels in latents of 4 x 4 x 3."""
    diffusers = optional.diffusers()
    torch.manual_seed(0)
    network = diffusers.AutoencoderKL(
        in_channels=1, out_channels=1, latent_channels=3, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **options,
    )  # fmt: skip
    network.save_pretrained(folder)
    return network


def test_the_network_sees_scaled_latents_and_the_loss_is_theirs():
    model, config = made()
    assert model.shape == (4, 4, 4) and model.channels == 4
    x = torch.rand(3, 1, 8, 8) * 2 - 1
    torch.testing.assert_close(model.anchor.to_z0(x), F.pixel_unshuffle(x, 2))  # (4 cells + 1 - 1) / 4
    torch.testing.assert_close(model.anchor.from_z0(model.anchor.to_z0(x)), x)
    data = build_data(config).train.__getitems__(range(8))
    found = losses(moved(model), data, torch.arange(8), config)
    seen = []
    hook = model.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    losses(model, data, torch.arange(8), config)
    hook.remove()
    assert seen[0].shape == (8, 4, 4, 4) and bool(torch.isfinite(torch.stack(list(found.values()))).all())


def test_sampling_gives_pixels_and_takes_them():
    model, config = made()
    moved(model)
    drawn = generate(model, config, 3, {"label": torch.tensor([2])}, seed=1)
    assert drawn["image"].shape == (3, 1, 8, 8) and float(drawn["image"].abs().max()) <= 1
    image = (torch.rand(3, 1, 8, 8) * 2 - 1) / 3  # which is rounded on the way through
    assert not torch.equal(model.anchor.from_z0(model.anchor.to_z0(image)), image)
    told = []
    hook = model.register_forward_hook(lambda module, args, out: told.append(args[2]["image"]))
    read = generate(model, config, 3, {"image": image})
    hook.remove()
    assert torch.equal(read["image"], image)  # as it was given, and not through the autoencoder
    torch.testing.assert_close(told[0], F.pixel_unshuffle(image, 2))


def test_latents_are_held_within_no_bounds():
    """`clamp` is of pixels: here all of it would be lost, since the latents lie about 50."""
    model, config = made({**OWN, "factor": 1.0, "shift": -50.0})
    moved(model)
    one = generate(model, config, 2, clamp=1.0, sampler="ddim")
    other = generate(model, config, 2, clamp=None, sampler="ddim")
    assert torch.equal(one["image"], other["image"])


def test_it_is_no_part_of_the_model():
    model, _ = made()
    plain, _ = made(None)
    assert {n.split(".")[0] for n in model.state_dict()} == {n.split(".")[0] for n in plain.state_dict()}
    assert copy.deepcopy(model).anchor.autoencoder is model.anchor.autoencoder


def test_its_latents_may_be_a_distribution_and_its_folder_has_their_factor(tmp_path):
    network = kl(tmp_path / "kl", scaling_factor=0.5)
    found = Autoencoder("modalities.image.autoencoder", AutoencoderSpec(str(tmp_path / "kl")), (1, 8, 8))
    x = torch.rand(2, 1, 8, 8) * 2 - 1
    with torch.no_grad():
        z = network.encode(x).latent_dist.mean
        assert found.shape == (3, 4, 4)
        torch.testing.assert_close(found.encode(x), 0.5 * z)
        torch.testing.assert_close(found.decode(0.5 * z), network.decode(z).sample.clamp(-1, 1))
    other = Autoencoder("modalities.image.autoencoder", AutoencoderSpec(str(tmp_path / "kl"), 2.0, 0.3), (1, 8, 8))
    torch.testing.assert_close(other.encode(x), 2 * (z - 0.3))


@pytest.mark.slow
def test_a_run_in_latents_trains_samples_and_is_exported(tmp_path):
    """From the config alone; the pipeline of diffusers draws what the run draws, in pixels."""
    network = kl(tmp_path / "kl")
    network_options = (
        "{kind: diffusers, block_out_channels: [8], down_block_types: [DownBlock2D], up_block_types: [UpBlock2D], "
        "layers_per_block: 1, norm_num_groups: 4}"
    )
    options = [("backbone", network_options), ("sample.sampler", "ddim"), ("loss.target", "v")]
    _, config = made({"network": str(tmp_path / "kl"), "factor": 2.0}, options)
    train(config, str(tmp_path / "run"), quiet=True)
    run = mmfast.load(tmp_path / "run", "cpu")
    assert run.sample(n=2).images[0].size == (8, 8)
    moved(run.model)
    pipe = optional.diffusers().DiffusionPipeline.from_pretrained(run.export("diffusers"))
    pipe.set_progress_bar_config(disable=True)
    torch.manual_seed(5)
    images = pipe(batch_size=2, num_inference_steps=4, output_type="np").images
    # The same by hand: their noise, our network, DDIM's formula, the autoencoder as it was made.
    torch.manual_seed(5)
    z, abar = torch.randn(2, 3, 4, 4), run.model.schedule.alpha_bar.tolist()
    unknown = torch.full((2, 2), 1000)
    with torch.no_grad():
        for t in (1000, 750, 500, 250):
            a, s = abar[t] ** 0.5, (1 - abar[t]) ** 0.5
            unknown[:, 0] = t
            v = run.model(z, unknown, {}).anchor
            z0, eps = a * z - s * v, s * z + a * v
            b = abar[t - 250]
            z = b**0.5 * z0 + (1 - b) ** 0.5 * eps
        expected = network.decode(z / 2.0).sample
    np.testing.assert_allclose(images[..., 0] * 2 - 1, expected[:, 0].clamp(-1, 1), atol=2e-3)


def test_figures_are_of_pixels_and_there_is_no_bound():
    model, config = made(more=[("sample.steps", "1")])
    data = build_data(config)
    config.evaluate.samples = 8
    found = evaluate(model, config, data, quiet=True)
    assert "frechet.samples" in found and "x0_error.1000" in found and not [n for n in found if "bound" in n]
    with pytest.raises(MmfastError, match="the bound is for pixels, and the model diffuses latents"):
        bound(model, data.test.__getitems__([0]))


@pytest.mark.parametrize("factor", [0.25, 1.0])
def test_distances_are_of_pixels_whatever_the_latents_scale(monkeypatch, factor):
    """Of the same samples they are those of a model without an autoencoder, and no sample is encoded for them."""
    drawn = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 10
    monkeypatch.setattr(evaluation, "generate", lambda *args, **how: {"image": drawn, "label": labels})
    monkeypatch.setattr(evaluation, "likelihood", lambda *args: {})
    found = []
    for autoencoder in ({**OWN, "factor": factor}, None):
        model, config = made(autoencoder)
        config.evaluate.samples = 40
        data = build_data(config)
        found.append(evaluate(model, config, data, quiet=True))
        config.evaluate.features = f"{ME}:cells"  # a network for images
        evaluation._check_measures(model, config)
    assert found[0] == found[1] and found[0]["frechet.samples"] > 0


@pytest.mark.parametrize(
    ("autoencoder", "message"),
    [
        (
            {"network": "nowhere"},
            "modalities.image.autoencoder.network is '.*/nowhere', where no config.json names a class",
        ),
        (
            {"network": f"{ME}:absent"},
            "which cannot be imported: .* has no attribute 'absent'; it should be module:function",
        ),
        ({"network": f"{ME}:no_decoder"}, "a Linear without encode; it should have encode and decode"),
        ({"network": f"{ME}:half"}, r"makes an image \[1, 8, 4\] from latents \[4, 4, 4\]; it should be \[1, 8, 8\]"),
        ({"network": "os:getcwd"}, "code that a config names; if you trust it"),
    ],
)
def test_what_cannot_be_had_is_named(autoencoder, message):
    with pytest.raises(MmfastError, match=message):
        made(autoencoder)


class Flat(Cells):
    """Its latents lie as `shape` says."""

    def __init__(self, *shape):
        self.shape = shape

    def encode(self, x):
        return torch.zeros(self.shape)


@pytest.mark.parametrize("shape", [(16,), (1, 4, 16), (2, 4, 4, 4), (1, 4, 4, 8), (1, 4, 8, 4)])
def test_latents_of_another_shape_than_the_image_s_are_refused(shape, monkeypatch):
    monkeypatch.setattr(autoencoders, "imported", lambda key, name: lambda: Flat(*shape))
    with pytest.raises(MmfastError, match=rf"latents {re.escape(str([*shape]))} from an image \[1, 1, 8"):
        Autoencoder("x", AutoencoderSpec(network="a:b"), (1, 8, 8))


def test_a_network_is_frozen_and_unscaled_where_nothing_says_how(monkeypatch):
    class Network(nn.Module, Cells):
        def __init__(self):
            super().__init__()
            self.layer = nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.5))

    network = Network().train()
    monkeypatch.setattr(autoencoders, "imported", lambda key, name: lambda: network)
    found = Autoencoder("x", AutoencoderSpec(network="a:b"), (1, 8, 8))
    assert not any(part.training for part in network.modules())
    assert not any(p.requires_grad for p in network.parameters())
    x = torch.rand(2, 1, 8, 8) * 2 - 1
    torch.testing.assert_close(found.encode(x), 4 * F.pixel_unshuffle(x, 2) + 1)
    torch.testing.assert_close(found.decode(found.encode(x)), x)
    assert (found.factor, found.shift, found.shape) == (1.0, 0.0, (4, 4, 4))


def test_a_folder_that_names_another_class_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    optional.diffusers()
    with pytest.raises(MmfastError, match="names 'UNet2DModel', which is not an autoencoder of diffusers"):
        made({"network": str(tmp_path)})


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        ({"kind": "mask", "size": 8}, "modalities.other.size is 8; it should be image's latents', 4"),
        ({"kind": "masked", "channels": 1, "size": 4}, "modalities.other is a masked, which cannot be combined with"),
        ({"kind": "image", "channels": 1, "size": 4}, "modalities.other is a image, which cannot be combined with"),
    ],
)
def test_what_has_no_place_beside_latents_is_named(beside, message):
    with pytest.raises(MmfastError, match=message):
        made(other=beside)


def test_an_autoencoder_of_another_image_than_the_anchor_is_refused():
    with pytest.raises(MmfastError, match=r"modalities.other.autoencoder is set for an image that is not the anchor"):
        made(None, other={"kind": "image", "channels": 1, "size": 8, "autoencoder": OWN})


def test_a_mask_lies_on_the_grid_of_the_latents():
    model, config = made(other={"kind": "mask", "size": 4})
    assert generate(model, config, 2)["other"].shape == (2, 4, 4)


@pytest.mark.slow
def test_a_small_one_trained_here_carries_digits(tmp_path, monkeypatch):
    """An autoencoder of a few convolutions, trained on the digits; then the model of its latents, and its samples."""
    module = nn.Module()
    encoder = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.SiLU(), nn.Conv2d(32, 4, 4, 2, 1))
    decoder = nn.Sequential(nn.ConvTranspose2d(4, 32, 4, 2, 1), nn.SiLU(), nn.Conv2d(32, 1, 3, padding=1))
    module.add_module("encoder", encoder), module.add_module("decoder", decoder)
    module.encode, module.decode = encoder.forward, decoder.forward
    _, config = made(None)
    images = build_data(config).train.__getitems__(range(1200)).data["image"]
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    for _ in range(400):
        x = images[torch.randint(0, len(images), (64,))]
        z = module.encode(x)
        loss = (module.decode(z) - x).square().mean() + 1e-3 * z.square().mean()
        loss.backward(), optimizer.step(), optimizer.zero_grad()
    factor = float(1 / module.encode(images).std().detach())
    monkeypatch.setattr(trust, "_allowed", {("", f"{ME}:trained")})
    monkeypatch.setitem(globals(), "trained", lambda: module)
    # Of eps the first steps would divide the network's error by sqrt(abar), and no clamp holds latents.
    options = [("backbone", "{kind: mlp, width: 192, blocks: 4, features: 16}"), ("loss.target", "v"),
               ("train.steps", "800"), ("train.batch_size", "64"), ("train.learning_rate", "0.002"),
               ("train.ema_decay", "0.98"), ("sample.steps", "25")]  # fmt: skip
    _, config = made({"network": f"{ME}:trained", "factor": factor}, options)
    train(config, str(tmp_path / "run"), quiet=True)
    run = mmfast.load(tmp_path / "run", "cpu").model
    drawn = generate(run, config, 200, seed=3)["image"]
    # As bright as the digits pixel by pixel, which nothing but having learnt them gives.
    gap = (drawn.mean(0) - images.mean(0)).abs().mean()
    spread = (drawn.std(0) - images.std(0)).abs().mean()
    assert float(gap) < 0.12 and float(spread) < 0.15, (gap, spread)
