"""Faults that readers found and that nothing else had seen, each by what it did."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from mmfast import MmfastError
from mmfast import config as configs
from mmfast.build import build_model, files_of
from mmfast.data import Batch, cache, listing
from mmfast.data.decoded import _own_options
from mmfast.data.items import MOST_CAPTIONS, captions
from mmfast.generate import generate
from mmfast.guess import Guess, _add
from mmfast.image_files import load_picture, read_header
from mmfast.likelihood import bound
from mmfast.metrics.rows import energy_distance
from mmfast.metrics.similarity import retrieval_rank
from mmfast.modalities.caption import CaptionSpec
from mmfast.modalities.label import LabelSpec, counted
from mmfast.sample import sample
from mmfast.training.trainer import seed_of

SMALL = [("backbone.width", "16"), ("backbone.blocks", "1")]


def pictures(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for k, name in enumerate(names):
        Image.fromarray(np.full((8, 8, 3), 10 * k, np.uint8)).save(folder / f"{name}.png")


def test_dropout_does_not_repeat_on_the_cpu():
    """Its generator looks at 32 bits of a seed: places 4096 examples apart had the same masks."""
    masks = set()
    for start in range(0, 128 * 200, 128):
        torch.manual_seed(seed_of(3, start))
        masks.add(torch.rand(8).numpy().tobytes())
    assert len(masks) == 200
    assert len({seed_of(seed, 0) % 2**32 for seed in range(100)}) == 100


def test_numbers_are_classes_whatever_the_classes_are_called():
    spec = LabelSpec(classes=3, names=["1", "2", "3"])
    assert counted(spec, [0] * 5 + [1] * 3 + [2] * 2) == {"class_counts": [5, 3, 2]}
    assert counted(spec, ["1"] * 5 + ["3"]) == {"class_counts": [5, 0, 1]}  # texts are names first
    assert counted(spec, [0, 3]) == counted(spec, [0, -1]) == {}
    config = configs.load("digits", [*SMALL, ("modalities.label.names", str([str(k) for k in range(1, 11)]))])
    label = build_model(config).part("label")
    assert [int(label.parse(text)) for text in label.values("all")] == [*range(10)]


def test_captions_are_of_all_examples():
    """Not of the first thousand, where they are sorted by what they show."""
    found = captions([f"ant {k}" for k in range(3000)] + [None, ""] + [f"bee {k}" for k in range(1500)])
    assert len(found) == MOST_CAPTIONS and sum(x.startswith("bee") for x in found) in range(300, 367)
    assert captions(["b", "a", "b", None]) == ["a", "b"]


def test_a_table_is_part_of_the_data(tmp_path):
    pictures(tmp_path / "image", "abcdefgh")
    (tmp_path / "labels.csv").write_text(
        "file_name,label\n" + "".join(f"image/{x}.png,{k % 2}\n" for k, x in enumerate("abcdefgh"))
    )
    image, label = {"kind": "image", "channels": 3, "size": 8}, {"kind": "label", "classes": 2}
    data = {"kind": "folder", "root": str(tmp_path)}
    backbone = {"kind": "mlp"}
    plain = {"anchor": "image", "data": data, "modalities": {"image": image, "label": label}, "backbone": backbone}
    config = configs.from_plain(plain, "test")
    assert {*files_of(config)} == {"labels.csv", *(f"image/{x}.png" for x in "abcdefgh")}


def test_what_lies_in_a_folder_of_another_modality_is_none_of_this(tmp_path):
    pictures(tmp_path, "abcd")
    pictures(tmp_path / "masks", "abcd")
    specs = {"photo": SimpleNamespace(kind="image"), "mask": SimpleNamespace(kind="mask", classes=2, values="")}
    spec = SimpleNamespace(
        root=str(tmp_path), folders={"photo": ".", "mask": "masks"}, outside=False, test_fraction=0.5
    )
    found = listing.look(spec, specs, "photo")
    assert [*found.paths["photo"]] == [*found.paths["mask"]] == [*"abcd"] and not found.problems


def test_the_order_of_options_does_not_count():
    one, two = (
        configs.load("digits", pairs)
        for pairs in (
            [("backbone.channels", "48"), ("backbone.kind", "unet")],
            [("backbone.kind", "unet"), ("backbone.channels", "48")],
        )
    )
    assert one == two and one.backbone.channels == 48


def test_what_counts_examples_is_no_way_to_read_them():
    plain, counts = LabelSpec(classes=3), LabelSpec(classes=3, class_counts=[1, 2, 3])
    assert _own_options(plain) == _own_options(counts) != _own_options(LabelSpec(classes=4))
    assert _own_options(CaptionSpec(captions=["a"])) == _own_options(CaptionSpec())


@pytest.mark.parametrize("said", ['tiff:Orientation="6"', "<tiff:Orientation>6</tiff:Orientation>"])
def test_a_header_turns_by_xmp_as_the_picture_does(tmp_path, said):
    file = tmp_path / "a.png"
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", f"<x:xmpmeta {said if '=' in said else ''}>{said}</x:xmpmeta>")
    Image.new("RGB", (40, 20)).save(file, pnginfo=info)
    assert load_picture(file).size == read_header(file).size == (20, 40)


def test_a_guessed_name_is_of_one_folder():
    guess = Guess(Path(), "image", {})
    first = _add(guess, SimpleNamespace(folder="half", kind="mask"), {"of": "half"})
    second = _add(guess, SimpleNamespace(folder="mask", kind="mask"), {"of": "mask"})
    assert first != second and {guess.folders.get(n, n) for n in (first, second)} == {"half", "mask"}
    assert guess.modalities[second] == {"of": "mask"}


def test_a_user_without_a_home_is_told_what_to_do(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(cache.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("Could not determine home")))
    with pytest.raises(MmfastError, match=r"give --data\.cache DIR"):
        cache.cache_folder()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_samples_that_are_not_finite_have_no_score(bad):
    good, broken = torch.randn(5, 3), torch.randn(5, 3)
    broken[2, 1] = bad
    for call in (energy_distance, retrieval_rank):
        for pair in ((good, broken), (broken, good)):
            with pytest.raises(MmfastError, match="not finite"):
                call(*pair)


def test_sampling_leaves_each_part_as_it_was():
    model = build_model(configs.load("digits", SMALL)).train()
    model.backbone.eval()
    before = [module.training for module in model.modules()]
    sample(model, 2, steps=1)
    assert [module.training for module in model.modules()] == before and len({*before}) == 2


@pytest.mark.parametrize("seed", [None, 1.5, "a"])
def test_a_seed_that_is_none_is_named(seed):
    config = configs.load("digits", SMALL)
    with pytest.raises(MmfastError, match="seed is a"):
        generate(build_model(config), config, 1, seed=seed)


def test_the_bound_is_of_the_network_without_dropout():
    model = build_model(configs.load("digits", [*SMALL, ("backbone.dropout", "0.4")]))
    data = {"image": torch.zeros(3, 1, 8, 8), "label": torch.arange(3), "mask": torch.zeros(3, 8, 8).long()}
    one, two, three = bound(model.train(), Batch(data)), bound(model, Batch(data)), bound(model.eval(), Batch(data))
    assert one == two == three


def test_the_bound_is_of_whole_examples():
    model = build_model(configs.load("digits", SMALL))
    data = {"image": torch.zeros(3, 1, 8, 8), "label": torch.arange(3), "mask": torch.zeros(3, 8, 8).long()}
    lacking = Batch(data, {"mask": torch.tensor([True, False, True])}), Batch({k: data[k] for k in ("image", "mask")})
    for batch, name in zip(lacking, ("mask", "label"), strict=True):
        with pytest.raises(MmfastError, match=f"batch has examples without {name}"):
            bound(model, batch, steps=1)
