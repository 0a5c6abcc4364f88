"""Export a trained model for another library: a pipeline that diffusers loads without mmfast."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mmfast.backbones import diffusers as adapter
from mmfast.config import Config
from mmfast.errors import MmfastError, optional_package, unknown
from mmfast.files import check_free, new_folder, path_of
from mmfast.modalities.image import Image
from mmfast.model import Model
from mmfast.samplers import SAMPLERS

TARGETS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
SCHEDULES = {"cosine": "squaredcos_cap_v2", "linear": "linear"}


def to_diffusers(model: Model, config: Config, folder: str | os.PathLike[str], sampler: str | None = None) -> Path:
    """Export the anchor's generation as a diffusers pipeline, for `DiffusionPipeline.from_pretrained(folder)`.

    The network is a UNet2DModel with these weights. Other modalities count as unknown: their channels are then empty,
    and the embedding of their times is a constant that is added to a bias. If the image is diffused as latents, the
    pipeline includes the autoencoder. `num_inference_steps` is an argument of the pipeline, whose samples equal ours if
    it divides T, and for DDIM with `use_clipped_model_output=True`.

    sampler: "ddpm", "ddim" or "dpmpp_2m", instead of the config's.
    folder: a new one, written completely or not at all. Raises MmfastError if diffusers is not installed or has no
    counterpart of the model, or if the folder is not empty.
    """
    with optional_package("diffusers", "diffusers", "export"):
        import diffusers
    folder = path_of("export's folder", folder)
    check_free("export's folder", folder)
    sampler = config.sample.sampler if sampler is None else sampler
    if sampler not in SAMPLERS:
        raise unknown("export's sampler", sampler, SAMPLERS)
    if sampler not in SCHEDULERS:
        raise MmfastError(
            f"export's sampler is {sampler!r}, which diffusers lacks; it should be one of {[*SCHEDULERS]}"
        )
    if sampler == "ddim" and config.sample.eta == 1:  # the same step, and diffusers' files do not store eta
        sampler = "ddpm"
    net = _unet(model, config)
    bounded = model.anchor.bounded and not model.latent  # as `sample` clamps
    scheduler = SCHEDULERS[sampler](diffusers, config, config.sample.clamp if bounded else None)
    if model.latent:
        if model.shape[1] != model.shape[2]:
            raise MmfastError(
                f"modalities.{model.anchor_name} has latents of {list(model.shape[1:])}, and diffusers' pipeline of "
                "latents draws only squares; export needs a square size"
            )
        pipeline = diffusers.LDMPipeline(_vae(diffusers, model), net, scheduler)
    else:
        pipeline = (diffusers.DDIMPipeline if sampler == "ddim" else diffusers.DDPMPipeline)(net, scheduler)
    with new_folder("export's folder", folder) as made:
        pipeline.save_pretrained(made)
    return folder


def _check(model: Model, config: Config) -> None:
    """Raise MmfastError if the model does something that UNet2DModel or diffusers' pipelines cannot."""
    if not isinstance(model.anchor, Image):
        raise MmfastError(
            f"the anchor, {model.anchor_name}, is of kind {model.anchor.kind}; export needs a run whose anchor is an "
            "image, because diffusers' pipelines draw images"
        )
    if not isinstance(model.backbone, adapter.Backbone):
        raise MmfastError(
            f"backbone.kind is {config.backbone.kind}, for which diffusers has no counterpart; export needs a run with "
            "backbone.kind=diffusers"
        )
    if model.names and (model.space == "shared" or not model.told):
        raise MmfastError(
            "export needs the image alone, but the network sees the other modalities in z_t; it needs a run with "
            "space=own and told=true, or without other modalities"
        )
    for name in model.names:
        part = model.part(name)
        if name in model.time_of and not part.spec.unknown_probability > 0:
            other = ", or with weight.kind=none" if part.uniform else ""
            raise MmfastError(
                f"modalities.{name}.unknown_probability is 0, so the network has never seen the image without {name}; "
                f"export needs a run in which it is above 0{other}"
            )
        if part.in_place and name not in model.traced and model.target != "eps":
            raise MmfastError(
                f"modalities.{name} is seen in the image's own pixels, scaled by the time, which diffusers' network "
                "does not support; export needs a run with loss.target=eps, or without this modality"
            )


@torch.no_grad()
def _unet(model: Model, config: Config) -> Any:
    """A UNet2DModel that predicts from z_t what the model predicts for the anchor, all else unknown."""
    _check(model, config)
    channels, *size = model.shape
    own = {name: x.detach().cpu() for name, x in model.backbone.net.state_dict().items()}
    own["conv_in.weight"] = own["conv_in.weight"][:, :channels].contiguous()
    if model.names:
        device = model.schedule.alpha_bar.device
        blank = torch.zeros(1, channels, *size, device=device, dtype=model.out.weight.dtype)
        times = torch.full((1, 1 + len(model.names)), model.schedule.T, device=device)
        own["time_embedding.linear_2.bias"] = own["time_embedding.linear_2.bias"] + model._beside(blank, times)[0].cpu()
    assert isinstance(model.norm[0], torch.nn.GroupNorm)
    for name, layer in {"conv_norm_out": model.norm[0], "conv_out": model.out}.items():
        own |= {f"{name}.{key}": x.detach().cpu() for key, x in layer.state_dict().items()}
    net = adapter.unet(config.backbone, channels, channels, size)
    net.load_state_dict(own)
    return net.to(model.out.weight.dtype).eval()


def _vae(diffusers: Any, model: Model) -> Any:
    """The autoencoder, scaled as the model's latents are."""
    own = getattr(model.anchor, "autoencoder", None)
    assert own is not None
    if not isinstance(own.network, diffusers.ModelMixin) or own.shift:
        raise MmfastError(
            f"modalities.{model.anchor_name}.autoencoder is {type(own.network).__name__} with shift {own.shift:g}; "
            "export needs one of diffusers' without a shift"
        )
    vae = copy.deepcopy(own.network)
    vae.register_to_config(scaling_factor=own.factor)
    return vae


def _schedule(config: Config) -> dict[str, Any]:
    """Options common to diffusers' schedulers. Its linear schedule has our bounds, its cosine schedule our offset."""
    return {
        "num_train_timesteps": config.schedule.T,
        "beta_schedule": SCHEDULES[config.schedule.kind],
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "prediction_type": TARGETS[config.loss.target],
        "timestep_spacing": "trailing",
    }


def _clip(clamp: float | None) -> dict[str, Any]:
    return {"clip_sample": clamp is not None, "clip_sample_range": 1.0 if clamp is None else clamp}


def _ddpm(diffusers: Any, config: Config, clamp: float | None) -> Any:
    return diffusers.DDPMScheduler(variance_type="fixed_small", **_schedule(config), **_clip(clamp))


def _ddim(diffusers: Any, config: Config, clamp: float | None) -> Any:
    if config.sample.eta:
        raise MmfastError(
            f"sample.eta is {config.sample.eta:g}, which diffusers' DDIM takes with every call and does not store; "
            "export with 0 or 1"
        )
    return diffusers.DDIMScheduler(set_alpha_to_one=True, **_schedule(config), **_clip(clamp))


def _dpmpp_2m(diffusers: Any, config: Config, clamp: float | None) -> Any:
    if clamp is not None:
        raise MmfastError(
            f"sample.clamp is {clamp}, and diffusers' DPM-Solver++ does not clamp images; export with "
            "sampler='ddim' or 'ddpm', or a run with sample.clamp=null"
        )
    eta = config.sample.eta
    if eta not in (0, 1):
        raise MmfastError(
            f"sample.eta is {eta:g}, and diffusers' DPM-Solver++ takes only 0 or 1; export with one of them"
        )
    return diffusers.DPMSolverMultistepScheduler(
        algorithm_type="sde-dpmsolver++" if eta else "dpmsolver++", **_schedule(config)
    )


# By sampler, a function of (diffusers, config, clamp) that makes the scheduler.
SCHEDULERS: dict[str, Callable[[Any, Config, float | None], Any]] = {
    "ddpm": _ddpm,
    "ddim": _ddim,
    "dpmpp_2m": _dpmpp_2m,
}

# By the library that reads the export.
EXPORTS: dict[str, Callable[..., Path]] = {"diffusers": to_diffusers}
