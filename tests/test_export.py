"""A pipeline for diffusers: loaded by diffusers alone, it draws what we draw from the same noise."""

import json
import subprocess
import sys

import numpy as np
import optional
import pytest
import torch
from torch import nn

import mmfast.loaded
import mmfast.run
from mmfast import config as configs
from mmfast import ops
from mmfast.build import build_model
from mmfast.errors import MmfastError
from mmfast.export import to_diffusers
from mmfast.files import save_tensors
from mmfast.sample import sample
from mmfast.streams import SAMPLE

diffusers = optional.diffusers()
from diffusers.pipelines.ddim import pipeline_ddim  # noqa: E402
from diffusers.pipelines.ddpm import pipeline_ddpm  # noqa: E402
from diffusers.schedulers import scheduling_ddpm  # noqa: E402

NETWORK = {
    "kind": "diffusers", "block_out_channels": [8, 8], "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"], "layers_per_block": 1, "norm_num_groups": 4,
    "attention_head_dim": 4,
}  # fmt: skip
ALONE = {"image": {"kind": "image", "channels": 1, "size": 8}}
BESIDE = {
    "mask": {"kind": "mask", "size": 8, "unknown_probability": 0.3},
    "label": {"kind": "label", "classes": 3, "weight": {"kind": "none"}},
    "hint": {"kind": "label", "classes": 3, "given_probability": 0.25, "unknown_probability": 0.3},
    **ALONE,
}
MASK, MASKED = ({**ALONE, "other": {"kind": kind, "size": 8}} for kind in ("mask", "masked"))
MASKED["other"]["channels"] = 1


def made(*options, modalities=ALONE):
    """A model with weights at random: of a new one the last layer is zero."""
    plain = {"backbone": NETWORK, "modalities": modalities, "loss": {"target": "v"}}
    config = configs.from_plain(plain, "test", options)
    model = build_model(config)
    torch.manual_seed(1)
    for name, p in model.named_parameters():
        nn.init.normal_(p, 1.0 if name == "norm.0.weight" else 0.0, 0.2)
    return model.eval(), config


def drawn_by_diffusers(folder, monkeypatch, seed, steps, **how):
    """What the pipeline draws, [B, 1, 8, 8] in -1 .. 1, from our noise: of z_T, and then of each step."""
    times = [round(1000 * (steps - i) / steps) for i in range(steps + 1)]
    noise = iter(times)

    def ours(shape, *_, **__):
        return ops.randn(list(shape), seed=seed, sample_ids=torch.arange(shape[0]), stream=SAMPLE, draw=next(noise))

    for module in (pipeline_ddim, pipeline_ddpm, scheduling_ddpm):
        monkeypatch.setattr(module, "randn_tensor", ours)
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe(batch_size=3, num_inference_steps=steps, output_type="np", **how).images


@pytest.mark.parametrize("modalities", [ALONE, BESIDE], ids=["alone", "beside"])
@pytest.mark.parametrize(("target", "schedule"), [("v", "cosine"), ("x0", "linear"), ("eps", "linear")])
def test_ddpm_draws_what_we_draw(target, schedule, modalities, tmp_path, monkeypatch):
    options = [("loss.target", target), ("schedule.kind", schedule), ("sample.sampler", "ddpm")]
    model, config = made(*options, modalities=modalities)
    expected = sample(model, 3, steps=7, clamp=1.0, seed=5, unknown=model.names)["image"]
    # Noise of 1 - abar = 1e-4 is of three digits in diffusers' float32 tables.
    folder = to_diffusers(model, config, tmp_path / "pipe")
    found = drawn_by_diffusers(folder, monkeypatch, 5, 7)
    np.testing.assert_allclose(found[..., 0] * 2 - 1, expected[:, 0], atol=2e-3)
    assert float(expected.std()) > 0.1  # the model says something


@pytest.mark.parametrize(("clamp", "sampler"), [("0.5", "ddim"), ("null", "ddim"), ("null", "dpmpp_2m")])
def test_other_samplers_too(clamp, sampler, tmp_path, monkeypatch):
    model, config = made(("sample.sampler", sampler), ("sample.clamp", clamp))
    expected = sample(model, 3, steps=10, sampler=sampler, clamp=config.sample.clamp, seed=5)["image"]
    folder = to_diffusers(model, config, tmp_path / "pipe")
    how = {"use_clipped_model_output": True} if sampler == "ddim" else {}
    found = drawn_by_diffusers(folder, monkeypatch, 5, 10, **how)
    np.testing.assert_allclose(found[..., 0] * 2 - 1, expected[:, 0].clamp(-1, 1), atol=2e-3)
    assert float(expected.clamp(-1, 1).std()) > 0.1


@pytest.mark.slow
def test_a_run_writes_one_that_needs_no_mmfast(tmp_path):
    model, config = made(("sample.sampler", "ddpm"))
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(configs.to_yaml(config))
    save_tensors(run / "ema.safetensors", model.state_dict(), {})
    folder = mmfast.load(run, "cpu").export("diffusers")
    assert folder == run / "diffusers" and not [x for x in run.iterdir() if x.name.startswith(".tmp")]
    code = (
        "import sys; sys.modules['mmfast'] = None\n"
        "import torch; from diffusers import DiffusionPipeline\n"
        f"pipe = DiffusionPipeline.from_pretrained({str(folder)!r})\n"
        "x, t = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8), torch.tensor([499])\n"
        "import json; print(json.dumps([type(pipe).__name__, pipe.unet(x, t).sample.flatten().tolist()]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    name, found = json.loads(done.stdout.splitlines()[-1])
    expected = model(torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8), torch.tensor([500]), {}).anchor
    assert name == "DDPMPipeline"
    np.testing.assert_allclose(found, expected.detach().flatten(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "modalities", "message"),
    [
        ([("backbone", "{kind: mlp, width: 8}")], ALONE, "kind is mlp, for which diffusers has no counterpart"),
        ([], MASK, "modalities.other.unknown_probability is 0, so the network has never seen the image without other"),
        ([("told", "false")], BESIDE, "the other modalities in z_t"),
        ([("space", "shared")], {**ALONE, "label": BESIDE["label"]}, "the other modalities in z_t"),
        ([], MASKED, "modalities.other is seen in the image's own pixels"),
        ([("sample.sampler", "dpmpp_2m")], ALONE, "sample.clamp is 1.0, and diffusers' DPM-Solver"),
    ],
)  # fmt: skip
def test_what_has_no_counterpart_is_named(options, modalities, message, tmp_path):
    model, config = made(*options, modalities=modalities)
    with pytest.raises(MmfastError, match=message):
        to_diffusers(model, config, tmp_path / "pipe")
    assert not any(tmp_path.iterdir())


def test_nothing_is_overwritten_and_names_are_checked(tmp_path):
    model, config = made()
    loaded = mmfast.loaded.Loaded(mmfast.run.Run(tmp_path), config, model)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("kept")
    with pytest.raises(MmfastError, match=r"export's folder is .*mine, which already exists"):
        loaded.export("diffusers", tmp_path / "mine")
    with pytest.raises(MmfastError, match="export's folder is 3; it should be a path"):
        loaded.export("diffusers", 3)
    with pytest.raises(MmfastError, match="export's kind is 'onnx'; it should be one of diffusers"):
        loaded.export("onnx")
    with pytest.raises(MmfastError, match="export's sampler is 'euler'"):
        loaded.export("diffusers", tmp_path / "new", sampler="euler")
    assert [x.name for x in tmp_path.iterdir()] == ["mine"] and (tmp_path / "mine" / "file").read_text() == "kept"
