"""The ranges of the backbones' options: the last value that is taken on each side, and the first that is not."""

import dataclasses

import pytest

from mmfast import backbones
from mmfast import config as configs
from mmfast.errors import MmfastError
from mmfast.guess import DRAFT
from mmfast.options import check

IMAGE = {"image": {"kind": "image", "channels": 1, "size": 8}}
COUNT, SHARE = ((1,), (0,)), ((0, 1), (-0.01, 1.01))
U_NET = {
    "channels": ((2,), (1,)), "multipliers": (([1], []), ([0], [1, 0])), "blocks": COUNT, "head_channels": COUNT,
    "patch": COUNT, "norm": (("group", "layer"), ("batch",)), "dropout": SHARE,
}  # fmt: skip
RANGES = {
    "unet": U_NET,
    "adm": U_NET | {"heads": ((0,), (-1,)), "classes": ((0,), (-1,))},
    "mlp": {"width": ((2,), (1,)), "blocks": COUNT, "features": COUNT, "dropout": SHARE},
    "dit": {
        "width": ((4,), (3,)), "blocks": ((2,), (1,)), "heads": COUNT, "patch": COUNT, "ratio": ((1e-3,), (0,)),
        "features": COUNT, "dropout": SHARE,
    },
    "diffusers": {
        "block_out_channels": (([1],), ([0],)), "layers_per_block": COUNT, "attention_head_dim": ((1, None), (0,)),
        "norm_num_groups": COUNT, "attn_norm_num_groups": ((1, None), (0,)), "norm_eps": ((1e-9,), (0,)),
        "dropout": SHARE, "resnet_time_scale_shift": (("default", "scale_shift"), ("add",)),
        "mid_block_scale_factor": ((1e-3,), (0,)), "downsample_type": (("conv", "resnet"), ("pool",)),
        "upsample_type": (("conv", "resnet"), ("pool",)), "downsample_padding": ((0,), (-1,)),
        "time_embedding_dim": ((1, None), (0,)), "freq_shift": ((0,), (-1,)),
    },
}  # fmt: skip

SPECS = {kind: backbones.kind(kind).Spec for kind in backbones.KINDS}


def config(kind, **options):
    raw = {**DRAFT, "data": {"kind": "digits"}, "modalities": IMAGE, "backbone": {"kind": kind, **options}}
    return configs.from_plain(raw, "x").backbone


@pytest.mark.parametrize("kind", backbones.KINDS)
def test_what_an_option_takes(kind):
    for which in (0, -1):
        taken = {name: right[which] for name, (right, _) in RANGES[kind].items()}
        found = config(kind, **taken)
        assert {name: getattr(found, name) for name in taken} == taken
    for name, (_, wrong) in RANGES[kind].items():
        for value in wrong:
            with pytest.raises(MmfastError, match=rf"^backbone\.{name} is "):
                check(SPECS[kind](**{name: value}), "backbone.")


@pytest.mark.parametrize(
    ("kind", "usual"),
    [
        ("mlp", {"width": 512, "blocks": 4, "features": 32, "dropout": 0.0}),
        ("dit", {"width": 384, "blocks": 12, "heads": 6, "patch": 2, "ratio": 4.0, "features": 64, "dropout": 0.0}),
    ],
)
def test_what_they_are_where_a_config_says_nothing(kind, usual):
    """The DiT of Peebles and Xie's S; a config that leaves one out trains the same network with every version."""
    assert dataclasses.asdict(config(kind)) == dataclasses.asdict(SPECS[kind]()) == {"kind": kind, **usual}


def test_a_kind_that_is_none_is_named():
    said = r"^backbone\.kind is 'vit'; it should be one of adm, diffusers, dit, mlp, unet; did you mean 'dit'\?$"
    for asked in (backbones.kind, config):
        with pytest.raises(MmfastError, match=said):
            asked("vit")
