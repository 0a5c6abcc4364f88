"""What `sample` is asked for: which arguments it takes, which it refuses in which words, and what it says meanwhile."""

import math

import pytest
import torch
from tiny import tiny

from mmfast import MmfastError
from mmfast.build import build_model
from mmfast.sample import sample


@pytest.fixture(scope="module")
def model():
    found = build_model(tiny())
    torch.manual_seed(0)
    torch.nn.init.normal_(found.out.weight, std=0.3)  # which begins at zero
    return found


LEFT = torch.zeros(8, 8, dtype=torch.bool)
MASK = torch.zeros(1, 8, 8, dtype=torch.int64)
IN_PART = {"given": {"mask": MASK}, "known": {"mask": LEFT}}

REFUSED = {
    "two numbers": (
        {"count": None, "given": {"label": torch.tensor([1, 2]), "mask": MASK.repeat(3, 1, 1)}},
        "given modalities hold [2, 3] examples; they should hold one number of them",
    ),
    "another number": (
        {"given": {"label": torch.tensor([1, 2, 3])}},
        "given['label'] holds 3 examples; it should hold 1 or 2",
    ),
    "no number": ({"count": 0}, "count is 0; it should be a whole number of at least 1"),
    "half a number": ({"count": 2.5}, "count is 2.5; it should be a whole number of at least 1"),
    "True, False": ({"count": True}, "count is True; it should be a whole number of at least 1"),
    "a batch of none": ({"batch_size": 0}, "batch_size is 0; it should be a whole number of at least 1"),
    "a batch in words": ({"batch_size": "all"}, "batch_size is 'all'; it should be a whole number of at least 1"),
    "a clamp of none": ({"clamp": 0}, "clamp is 0; it should be above 0, or None"),
    "a pair of clamps": ({"clamp": (-1, 1)}, "clamp is (-1, 1); it should be above 0, or None"),
    "spacing below 1": ({"spacing": 0.99}, "spacing is 0.99; it should lie in 1 .. 10"),
    "spacing above 10": ({"spacing": 10.1}, "spacing is 10.1; it should lie in 1 .. 10"),
    "spacing in words": ({"spacing": "2"}, "spacing is '2'; it should lie in 1 .. 10"),
    "eta in words": ({"eta": "1"}, "eta is '1'; it should lie in 0 .. 1"),
    "eta that plays no part": (
        {"sampler": "heun", "eta": 0.5},
        "eta is 0.5, and heun takes none; leave it out, or use a sampler that does: ddim",
    ),
    "no seed": ({"seed": None}, "seed is None; it should be a number"),
    "several samplers": ({"sampler": ["ddpm"]}, "sampler is ['ddpm']; it should be one of ddpm, ddim"),
    "given that is no tensor": (
        {"given": {"label": 3}},
        "given['label'] is a int; it should be a tensor [count, ...] (mmfast.load(RUN).sample takes numbers",
    ),
    "given that is no dict": ({"given": [3]}, "given is a list; it should be a dict from modality to tensor"),
    "known that is no dict": ({"known": [3]}, "known is a list; it should be a dict from modality to tensor"),
    "unknown that is no name": ({"unknown": 3}, "unknown is a int; it should be a modality's name, or a list of them"),
    "too many times": ({**IN_PART, "resample": 257}, "resample is 257; it should be at most 256"),
    "guidance in words": (
        {"given": {"mask": MASK}, "guidance_scale": "2"},
        "guidance_scale is '2'; it should be a finite number",
    ),
    "eta above 1": ({"eta": 1.01}, "eta is 1.01; it should lie in 0 .. 1"),
    "eta below 0": ({"eta": -0.01}, "eta is -0.01; it should lie in 0 .. 1"),
    "precision": ({"precision": "fp16"}, "precision is 'fp16'; it should be one of"),
    "heads": ({"heads": "hard"}, "heads is 'hard'; it should be one of"),
    "no time at all": ({**IN_PART, "resample": 0}, "resample is 0; it should be a whole number of at least 1"),
    "several times": (
        {**IN_PART, "offset": {"label": 0.2}},
        "something is given in part, with an offset, by which z_t has several times; leave the offset out, or give "
        "resample=1",
    ),
    "unknown that is none": ({"unknown": ["masks"]}, "unknown's modality is 'masks'; it should be one of label, mask"),
    "unknown that is given": (
        {"given": {"mask": MASK}, "unknown": "mask"},
        "unknown's modality is 'mask'; it should be one of label",
    ),
    "guidance that is no number": (
        {"given": {"mask": MASK}, "guidance_scale": {"mask": "2"}},
        "guidance_scale is '2'; it should be a finite number",
    ),
    "guidance without bounds": (
        {"given": {"mask": MASK}, "guidance_scale": {"mask": math.inf}},
        "guidance_scale is inf; it should be a finite number",
    ),
    "offset": ({"offset": 0.2}, "offset is 0.2; it should be a dict from modality to a share of T"),
    "offset of the anchor": ({"offset": {"image": 0.2}}, "offset has image, the anchor"),
    "offset of none": ({"offset": {"masks": 0.2}}, "offset's modality is 'masks'; it should be one of label, mask"),
}


@pytest.mark.parametrize(("how", "says"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(model, how, says):
    with pytest.raises(MmfastError) as caught:
        sample(model, **{"count": 2, "steps": 2, **how})
    assert str(caught.value).startswith(says)


TAKEN = {
    "one at a time": {"batch_size": 1},
    "one and two": {"given": {"label": torch.tensor([3]), "mask": MASK.repeat(2, 1, 1)}},
    "spacing of 10": {"spacing": 10},
    "eta of 1": {"eta": 1, "sampler": "ddim"},
    "once, with an offset": {**IN_PART, "offset": {"label": 0.2}, "resample": 1},
    "an offset of what is given": {
        **IN_PART,
        "given": {"mask": MASK, "label": torch.tensor([3])},
        "offset": {"label": 0.2},
    },
    "whole, with an offset": {"given": {"mask": MASK}, "offset": {"label": 0.2}},
    "unknown as a text": {"unknown": "mask"},
}  # fmt: skip


@pytest.mark.parametrize("how", TAKEN.values(), ids=TAKEN)
def test_what_is_taken(model, how):
    drawn = sample(model, **{"count": 2, "steps": 3, **how})
    assert {name: len(x) for name, x in drawn.items()} == {"image": 2, "label": 2, "mask": 2}


@pytest.mark.parametrize(
    "pairs",
    [{"space": "shared", **{f"modalities__{n}__weight": "{kind: bridge}" for n in ("label", "mask")}}, {"told": False}],
)
def test_an_offset_needs_times_of_their_own(pairs):
    with pytest.raises(
        MmfastError, match=r"offset is {'mask': 0.2}, but z_t has one time; it needs a model with space"
    ):
        sample(build_model(tiny(**pairs)), 1, steps=2, offset={"mask": 0.2})


def test_the_defaults_are_those_of_the_docstring(model):
    """One sample where nothing is given, of seed 0, numbered from 0, by ddpm in 50 steps with z_0 held in -1 .. 1."""
    usual = sample(model)
    spelt = sample(model, 1, {}, seed=0, sample_ids=torch.tensor([0]), steps=50, sampler="ddpm", clamp=1.0,
                   guidance_scale=1.0, precision="fp32", heads="soft")  # fmt: skip
    assert len(usual["image"]) == 1 and all(torch.equal(usual[name], x) for name, x in spelt.items())
    again = sample(model, given={"mask": MASK}, known={"mask": LEFT}, steps=3)
    spelt = sample(model, given={"mask": MASK}, known={"mask": LEFT}, steps=3, resample=5)
    assert all(torch.equal(again[name], x) for name, x in spelt.items())


def test_the_bar_counts_the_networks_evaluations(model, capsys):
    """By batches, by steps, by Heun's second look, and by how often a step is taken again, the last but once."""
    for how, said in (
        ({"count": 5, "batch_size": 2, "steps": 3, "progress": True}, "sampling: 9 evaluations\n"),
        ({"count": 2, "steps": 3, "sampler": "heun", "progress": "mine"}, "mine: 5 evaluations\n"),
        ({**IN_PART, "steps": 3, "resample": 4, "progress": True}, "sampling: 9 evaluations\n"),
        ({"given": {"mask": MASK}, "steps": 3, "resample": 4, "progress": True}, "sampling: 3 evaluations\n"),
        ({"count": 2, "steps": 3}, ""),
    ):  # fmt: skip
        sample(model, **how)
        assert capsys.readouterr().err == said
