"""ADM's released checkpoints (Dhariwal and Nichol, 2021; openai/guided-diffusion) as weights to start from.

A checkpoint is a dictionary of tensors. ADM was trained on images in -1 .. 1 to predict the noise and, in three more
channels, a variance that nothing here uses. Its schedules are Schedule.cosine(1000) at 64 pixels and
Schedule.linear(1000) above; a checkpoint does not state which, so the config has to.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mmfast.backbones.adm import Backbone, Spec
from mmfast.backbones.unet import Attention, GroupNorm
from mmfast.errors import MmfastError
from mmfast.files import check_regular
from mmfast.model import Model
from mmfast.sizes import Size

# A layer's name in a checkpoint, and its name here.
FIXED = {
    "time_embed.0": "backbone.time.0",
    "time_embed.2": "backbone.time.2",
    "label_emb": "backbone.label",
    "input_blocks.0.0": "backbone.first",
    "out.0": "norm.0",
    "out.2": "out",
}
WITHIN = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "skip",
    "norm": "norm",
    "qkv": "qkv",
    "proj_out": "out",
}
SAME = "backbone.channels, multipliers, blocks, attention and classes should be the checkpoint's"


class Network(nn.Module):
    """ADM itself: x [B, 3, H, W], t int64 [B] from 1, class y int64 [B] -> [B, 6, H, W].

    The first three channels are the noise; the rest place the logarithm of the variance within its range.
    """

    def __init__(self, spec: Spec, size: Size, channels: int = 3, outputs: int = 6) -> None:
        super().__init__()
        self.backbone = Backbone(spec, channels, size)
        features = self.backbone.features
        self.norm = nn.Sequential(GroupNorm(features), nn.SiLU())
        self.out = nn.Conv2d(features, outputs, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.out(self.norm(self.backbone(x, t, y=y).pixels))


def load_adm(source: str | Path | Mapping[str, Tensor], model: Model | Network, *, new_attention_order: bool) -> None:
    """Load an ADM checkpoint into a model, using every tensor of the checkpoint and filling every one of the network.

    A Model then predicts ADM's noise for its anchor whatever else it is told, and can be trained from there: the
    channels of the other modalities, their times and what the decoder is told have weights of zero, and the other
    modalities' heads stay as they were. (If the anchor itself is told, the network sees it instead of z_t.)
    Without backbone.classes, the mean of ADM's class embeddings is added to the time's bias.

    Args:
        source: the file (such as 64x64_diffusion.pt), or its tensors by name.
        model: with a backbone of kind adm and the checkpoint's dimensions; it changes only if everything fits.
        new_attention_order: the flag use_new_attention_order of the checkpoint: True for ADM's ImageNet-64, False for
            the larger ones. A checkpoint does not state it, and with the wrong order it loads but is useless.

    Raises MmfastError for a file that cannot be read, tensors that do not fit, and a model whose last normalisation is
    not ADM's, which has fewer than 128 channels.
    """
    where = str(source) if isinstance(source, (str, Path)) else "the checkpoint"
    if not isinstance(model.backbone, Backbone):
        raise MmfastError(f"backbone is a {type(model.backbone).__name__}; to load ADM, backbone.kind should be adm")
    if isinstance(model, Model) and model.target != "eps":
        raise MmfastError(f"loss.target is {model.target!r}; it should be eps, which is what ADM predicts")
    groups, own = model.norm[0].num_groups, GroupNorm(model.backbone.features).num_groups
    if groups != own:
        raise MmfastError(
            f"the anchor's head normalises {model.backbone.features} channels in {groups} groups, and ADM in {own}; to "
            "load ADM, backbone.channels should be at least 128"
        )
    state = _read(Path(source)) if isinstance(source, (str, Path)) else source
    found = {}
    for name, x in state.items():
        place = _place(name)
        if place is None or place in found:
            raise MmfastError(f"{where} holds {name}, which ADM's network with resblock_updown has no place for")
        found[place] = torch.atleast_1d(x)
    inputs, anchor = found.get("backbone.first.weight"), model.shape[0] if isinstance(model, Model) else None
    if anchor is not None and inputs is not None and inputs.dim() == 4 and inputs.shape[1] != anchor:
        raise MmfastError(f"{where} is for {inputs.shape[1]} input channels; it should be for the anchor's, {anchor}")
    wanted = {n: x for n, x in model.state_dict().items() if n.split(".")[0] in ("backbone", "norm", "out")}
    _fit(found, wanted, model.backbone, where, new_attention_order)
    if isinstance(model, Model):  # the last layers of what is added to the embedding of the anchor's time
        ends = ("time_of", "2"), ("tell_decoder", None)
        keys = {n: (n.split(".")[0], n.split(".")[-2]) for n in model.state_dict()}
        added = {n: model.state_dict()[n] for n, k in keys.items() if k in ends or (k[0], None) in ends}
        found |= {n: torch.zeros_like(x) for n, x in added.items()}
    model.load_state_dict({**model.state_dict(), **found})


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        check_regular(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise MmfastError(f"{path} does not exist; give the path of a checkpoint of ADM") from None
    except (OSError, EOFError, RuntimeError, ValueError, LookupError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MmfastError(f"{path} cannot be read as a file of tensors: {reason}") from None
    if not isinstance(state, Mapping) or not all(isinstance(x, Tensor) for x in state.values()):
        raise MmfastError(f"{path} holds a {type(state).__name__}; it should hold tensors by name, as ADM's do")
    return state


def _place(name: str) -> str | None:
    """The model's name for a checkpoint's tensor; None if it has no counterpart."""
    layer, _, kind = name.rpartition(".")
    if layer in FIXED:
        return f"{FIXED[layer]}.{kind}"
    match = re.fullmatch(r"(input_blocks\.|output_blocks\.|middle_block)(\d*)\.(\d+)\.(.+)", layer)
    if match is None or match[4] not in WITHIN:
        return None
    side, block, index, within = match.groups()
    if bool(block) == (side == "middle_block"):
        return None
    # The first input block is the convolution before all blocks.
    level = "middle" if not block else f"down.{int(block) - 1}" if side == "input_blocks." else f"up.{int(block)}"
    return f"backbone.{level}.{index}.{WITHIN[within]}.{kind}"


def _fit(
    found: dict[str, Tensor], wanted: Mapping[str, Tensor], backbone: Backbone, where: str, new_attention_order: bool
) -> None:
    """Convert the tensors found to the form of those wanted, or raise MmfastError."""
    classes = None if backbone.label is not None else found.pop("backbone.label.weight", None)
    for names, text in ((wanted.keys() - found, "lacks"), (found.keys() - wanted, "has, and the network lacks,")):
        if names:
            raise MmfastError(f"{where} {text} {len(names)} tensors, such as {min(names)}; {SAME}")
    heads = {name: layer.heads for name, layer in backbone.named_modules() if isinstance(layer, Attention)}
    for name, x in found.items():
        layer, _, kind = name.rpartition(".")
        if layer.endswith(".qkv") and not new_attention_order:
            x = _by_kind(x, heads[layer.removeprefix("backbone.").removesuffix(".qkv")])
        if name == "backbone.first.weight" and x.dim() == 4:
            x = _widened(x, wanted[name].shape[1])
        elif layer == "out":
            x = x[: len(wanted[name])]
        elif wanted[name].dim() == 4 and x.dim() == 3:  # the attentions' convolutions over a line of pixels
            x = x[..., None]
        if x.shape != wanted[name].shape:
            shapes = f"{list(x.shape)}; the network's is {list(wanted[name].shape)}"
            raise MmfastError(f"{where}: {layer}'s {kind} is {shapes}; {SAME}")
        found[name] = x
    if classes is not None:
        bias = found["backbone.time.2.bias"]
        if classes.dim() != 2 or classes.shape[1:] != bias.shape:
            raise MmfastError(f"{where}: label_emb is {list(classes.shape)}; it should be [classes, {len(bias)}]")
        found["backbone.time.2.bias"] = bias + classes.mean(0)


def _by_kind(x: Tensor, heads: int) -> Tensor:
    """qkv's rows [heads, 3, C / heads] as [3, heads, C / heads]: all queries first, then the keys and the values."""
    if len(x) % (3 * heads):
        return x  # its shape will be refused
    return x.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)


def _widened(x: Tensor, channels: int) -> Tensor:
    """A convolution's weight [out, in, h, w], filled up to `channels` inputs with zeros."""
    blank = x.new_zeros(len(x), max(0, channels - x.shape[1]), *x.shape[2:])
    return torch.cat((x, blank), 1)
