"""A model cast to half, bfloat16 or double samples what the model in float32 does, to the rounding of its network."""

import copy

import pytest
import torch
from torch import nn

from mmfast import config as configs
from mmfast.build import build_model
from mmfast.generate import generate
from mmfast.loss import L0

NETWORKS = {
    "mlp": {"width": 16, "blocks": 2, "features": 4},
    "unet": {"channels": 8, "multipliers": [1, 2], "blocks": 1, "patch": 2, "attention": [4]},
    "dit": {"width": 16, "blocks": 2, "heads": 2, "features": 4},
}
# Every kind, learned encoders too: their weights meet data in float32.
MODALITIES = {
    "image": {"kind": "image", "channels": 1, "size": 8},
    "mask": {"kind": "mask", "size": 8, "encoder": "learned"},
    "label": {"kind": "label", "classes": 10},
    "kind": {"kind": "label", "classes": 4, "encoder": "learned", "weight": {"kind": "none"}},
    "words": {"kind": "embedding", "dim": 6, "encoder": "learned"},
    "map": {"kind": "feature_map", "dim": 3, "cells": 2},
    "part": {"kind": "masked", "channels": 1, "size": 8},
    "other": {"kind": "image", "channels": 1, "size": 8, "encoder": "learned"},
}


def made(name, modalities=None):
    plain = {"modalities": modalities or MODALITIES, "sample": {"steps": 2, "sampler": "ddim"}}
    config = configs.from_plain(
        {**plain, "backbone": {"kind": name, **NETWORKS[name]}, "loss": {"target": "v"}}, "test"
    )
    model = build_model(config)
    torch.manual_seed(0)
    for part in (model.backbone, model.out):
        for p in part.parameters():
            nn.init.normal_(p, std=0.3 if p.dim() > 1 else 0.1)
    return model, config


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_it_samples_as_the_float32_one(name, dtype):
    model, config = made(name)
    given = {"label": torch.tensor([3]), "mask": torch.zeros(1, 8, 8, dtype=torch.int64).fill_(1)}
    how = {"given": given, "guidance_scale": 1.5, "seed": 3}
    whole = generate(model, config, 2, **how)
    cast = copy.deepcopy(model).to(dtype)
    found = generate(cast, config, 2, **how)
    assert {p.dtype for p in cast.backbone.parameters()} == {dtype}
    assert {n: x.dtype for n, x in found.items()} == {n: x.dtype for n, x in whole.items()}
    # Of some tens of layers, each rounded; in bfloat16 a rounding is 1/256 of the value.
    allowed = {torch.float64: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.15}[dtype]
    for n in ("image", "other", "map"):
        gap = float((found[n] - whole[n]).square().mean().sqrt() / whole[n].square().mean().sqrt())
        assert gap < allowed and (gap > 0 or dtype == torch.float64), (n, gap)


def test_a_cast_leaves_encodings_and_tables_as_they_are():
    model, _ = made("mlp")
    data = {"label": torch.tensor([1, 2]), "words": torch.randn(2, 6)}
    before = model.encode(data)
    cast = copy.deepcopy(model).half()
    after = cast.encode(data)
    assert all(torch.equal(before[n], after[n]) and after[n].dtype == torch.float32 for n in data)
    z = {"z0": torch.randn(2, 1, 8, 8), "E": {}}
    assert torch.equal(L0(model.schedule, *z.values()), L0(cast.schedule, *z.values()))
