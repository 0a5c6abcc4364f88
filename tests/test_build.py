"""From a config to its data and its network: what is handed on, and a network that cannot be made."""

from types import SimpleNamespace as Some

import pytest
import torch

from mmfast import backbones, build
from mmfast import config as configs
from mmfast.data import Data
from mmfast.data.base import InMemory
from mmfast.errors import MmfastError
from mmfast.guess import DRAFT

IMAGE = {"kind": "image", "channels": 1, "size": 8}


def config(backbone=None, **more):
    backbone = backbone or {"kind": "mlp"}
    raw = {**DRAFT, "data": {"kind": "digits"}, "modalities": {"image": IMAGE, **more}, "backbone": backbone}
    return configs.from_plain(raw, "x")


@pytest.mark.parametrize(
    ("spec", "handed_on"),
    [
        ({"kind": "embedding", "dim": 4}, (4, "", 0, False)),
        ({"kind": "feature_map", "dim": 3, "cells": 2}, (3, "", 2, False)),
    ],
)
def test_a_network_s_embeddings_are_added_to_the_data(monkeypatch, spec, handed_on):
    chosen, asked = config(other={**spec, "network": "vgg16"}), []
    data = Data(*[InMemory({"image": torch.zeros(3, 1, 8, 8)})] * 2)
    kind = Some(open=lambda spec, read, anchor: asked.append([*read]) or data)
    monkeypatch.setattr(build.data, "kind", lambda name: kind)
    monkeypatch.setattr(build, "with_embeddings", lambda *args: asked.append(args) or data)
    found = build.build_data(chosen)
    assert asked == [["image"], (data, "image", "other", "vgg16", *handed_on)] and found.train is data.train


@pytest.mark.parametrize("multiplier", [2**50, 2**58, 2**60, 2**70])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_channels_that_torch_cannot_count_are_one_line(multiplier, device):
    chosen = config({"kind": "unet", "channels": 32, "multipliers": [1, multiplier], "patch": 1})
    with (
        torch.device(device),
        pytest.raises(MmfastError, match=r"^backbone: .* cannot be made \(.*; choose smaller") as e,
    ):
        build.build_model(chosen)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("kind", ["mask", "label"])
def test_classes_that_no_memory_holds_are_one_line(kind):
    chosen = config(other={"kind": kind, "classes": 2**31 - 1, **({"size": 8} if kind == "mask" else {})})
    with pytest.raises(MmfastError, match=r"^modalities\.other: a modality with these options cannot be made \(") as e:
        build.build_model(chosen)
    assert str(e.value).endswith("); choose smaller ones") and "\n" not in str(e.value)


def test_a_type_error_of_a_backbone_is_not_hidden(monkeypatch):
    def make(spec, channels, size):
        return 1 + "1"

    monkeypatch.setattr(backbones.kind("mlp"), "Backbone", make)
    with pytest.raises(TypeError, match="unsupported operand"):
        build.build_model(config())


@pytest.mark.parametrize(
    ("error", "reason"),
    [(RuntimeError("too large\nfor this"), "too large"), (MemoryError(), "MemoryError"), (OverflowError(" 9 "), "9")],
)
def test_a_network_that_cannot_be_made_is_one_line(monkeypatch, error, reason):
    def make(spec, channels, size):
        raise error

    monkeypatch.setattr(backbones.kind("mlp"), "Backbone", make)
    with pytest.raises(MmfastError) as found:
        build.build_model(config())
    assert str(found.value) == (
        f"backbone: a network with these options cannot be made ({reason}); choose smaller ones"
    )
