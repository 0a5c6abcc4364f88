"""Faults that readers found and that nothing else had seen, each by what it did."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from mmfast import MmfastError, sweep
from mmfast import config as configs
from mmfast.build import build_model, files_of, with_found
from mmfast.cli.shared import measure_by
from mmfast.data import Batch, cache, listing
from mmfast.data.decoded import _own_options
from mmfast.data.items import MOST_CAPTIONS, captions
from mmfast.generate import generate, how_drawn
from mmfast.given import known_part
from mmfast.guess import Guess, _add
from mmfast.image_files import load_picture, read_header
from mmfast.likelihood import bound
from mmfast.metrics.rows import energy_distance
from mmfast.metrics.similarity import retrieval_rank
from mmfast.modalities.caption import CaptionSpec
from mmfast.modalities.label import LabelSpec, counted
from mmfast.sample import sample
from mmfast.saved import write_arrays
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
    first = _add(guess, SimpleNamespace(folder="half", kind="mask"), {"kind": "mask", "of": "half"})
    second = _add(guess, SimpleNamespace(folder="mask", kind="mask"), {"kind": "mask", "of": "mask"})
    assert first != second and {guess.folders.get(n, n) for n in (first, second)} == {"half", "mask"}
    assert guess.modalities[second] == {"kind": "mask", "of": "mask"}


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


def test_numbers_of_numpy_are_numbers():
    model, noise = digits(), {"seed": 3, "sampler": "ddim"}
    plain = sample(model, 2, {"label": torch.tensor([1, 2])}, steps=2, eta=0.5, guidance_scale=2, clamp=0.5, **noise)
    given = {"label": torch.tensor([1, 2])}
    numpys = {"steps": np.int64(2), "eta": np.float32(0.5), "clamp": np.float32(0.5), "batch_size": np.int32(256)}
    for scale in (np.float32(2), {"label": np.int64(2)}):
        found = sample(model, np.int64(2), given, guidance_scale=scale, **numpys, **noise)
        assert all(torch.equal(found[name], x) for name, x in plain.items())


def test_a_given_number_needs_a_dimension():
    with pytest.raises(MmfastError, match=r"given\['label'\] is a tensor of no dimension; it should be \[count"):
        sample(digits(), 1, {"label": torch.tensor(3)}, steps=1)


def digits(**more):
    config = configs.load("digits", [("backbone", "{kind: mlp, width: 8, blocks: 1}"), *more.items()])
    return build_model(config).eval()


def test_a_network_that_is_not_told_is_not_guided():
    model, given = digits(told="false"), {"label": torch.tensor([1])}
    with pytest.raises(MmfastError, match="guidance_scale is 3, but the model was trained with told: false"):
        sample(model, 1, given, steps=2, sampler="ddim", guidance_scale=3)
    with pytest.raises(MmfastError, match="guidance_scale is 'a'"):
        sample(model, 1, given, steps=1, guidance_scale="a")


def test_what_is_written_of_a_draw_has_the_eta_that_it_had():
    config = configs.load("digits", [("sample.eta", "0.5"), ("sample.sampler", "ddim")])
    model = build_model(config)
    assert how_drawn(model, config, [], {})["eta"] == 0.5
    assert how_drawn(model, config, [], {"sampler": "ddpm"})["eta"] == 0
    assert how_drawn(model, config, [], {"sampler": "dpmpp_2m", "eta": 1.0})["eta"] == 1


def test_to_build_a_model_leaves_the_generators_of_gpus_alone(monkeypatch):
    """torch.manual_seed seeds them too, of which fork_rng(devices=[]) keeps none."""
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("seeded"))
    before = torch.get_rng_state()
    first, second = (digits().state_dict() for _ in range(2))
    assert all(torch.equal(x, second[name]) for name, x in first.items()) and torch.equal(before, torch.get_rng_state())


def test_a_size_on_the_command_line_needs_no_brackets():
    for text in ("8,16", "[8, 16]", "8, 16"):
        assert configs.load("digits", [("modalities.image.size", text)]).modalities["image"].size == [8, 16]
    for text in ("8,", "8,16,8", "8,x"):
        with pytest.raises(MmfastError, match="it should be a whole number, or two as"):
            configs.load("digits", [("modalities.image.size", text)])


def test_arrays_of_any_name(tmp_path):
    """np.savez takes `file` and `allow_pickle` for its own arguments."""
    arrays = {"file": np.arange(3), "allow_pickle": np.ones((2, 2), np.float32), "image": np.zeros(0)}
    write_arrays(tmp_path / "x.npz", arrays)
    with np.load(tmp_path / "x.npz") as found:
        assert {*found} == {*arrays} and all(
            (found[n] == x).all() and found[n].dtype == x.dtype for n, x in arrays.items()
        )


def test_a_picture_says_what_is_known():
    model = digits()
    part, pixels = model.part("image"), np.zeros((8, 8), np.uint8)
    pixels[2:, 1:5] = 255
    wanted = torch.from_numpy(pixels > 0)[None]
    assert torch.equal(known_part(part, Image.fromarray(pixels), "known image"), wanted)
    assert torch.equal(known_part(part, pixels, "known image"), wanted)
    large = Image.fromarray(pixels.repeat(4, 0).repeat(4, 1)).convert("RGB")
    assert torch.equal(known_part(part, large, "known image"), wanted)


def test_a_sweep_takes_one_guidance_scale():
    with pytest.raises(MmfastError, match=r"over has 'guidance_scale.label' and 'guidance_scale'; it should have one"):
        sweep.configs(configs.load("digits"), {"guidance_scale": ["1"], "guidance_scale.label": ["2"]})


def test_the_weights_of_one_network_are_not_those_of_another():
    spec = SimpleNamespace(features="vgg16", features_weights="a.pth", lpips="alex", lpips_weights="b.pth")
    measure_by(SimpleNamespace(features="vgg16", lpips=None), spec)
    assert (spec.features_weights, spec.lpips_weights) == ("a.pth", "b.pth")
    measure_by(SimpleNamespace(features="pixels", lpips="vgg", lpips_weights="c.pth"), spec)
    assert vars(spec) == {"features": "pixels", "features_weights": "", "lpips": "vgg", "lpips_weights": "c.pth"}


def test_label_files_are_counted(tmp_path):
    pictures(tmp_path / "image", [f"{k:03}" for k in range(25)])
    (tmp_path / "label").mkdir()
    for k in range(0, 25, 2):
        (tmp_path / "label" / f"{k:03}.txt").write_text("cat\n" if k % 8 else "1")
    (tmp_path / "label" / "002.txt").write_bytes(b"\xff\xfe")  # which cannot be read
    image, label = {"kind": "image", "channels": 3, "size": 8}, {"kind": "label", "classes": 2, "names": ["cat", "dog"]}
    plain = {"anchor": "image", "data": {"kind": "folder", "root": str(tmp_path)}, "backbone": {"kind": "mlp"}}
    config = with_found(configs.from_plain({**plain, "modalities": {"image": image, "label": label}}, "test"))
    train = [stem for stem in listing.look(config.data, {**config.modalities}, "image").split()["train"]]
    labelled = [int(stem) for stem in train if int(stem) % 2 == 0 and int(stem) != 2]
    dogs = sum(k % 8 == 0 for k in labelled)
    assert config.modalities["label"].class_counts == [len(labelled) - dogs, dogs] and dogs
