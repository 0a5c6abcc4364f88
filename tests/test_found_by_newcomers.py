"""Faults that a newcomer met with data of their own: each by what it did."""

import os
import shlex

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import flags, tiny

from mmfast import MmfastError
from mmfast import config as configs
from mmfast.build import build_data, build_model, with_found
from mmfast.cli import main
from mmfast.cli.init import _run_of
from mmfast.data import folder, sprites
from mmfast.data import torchvision as torchvision_sets
from mmfast.given import known_part, taken
from mmfast.guess import guess
from mmfast.image_files import EXTENSIONS
from mmfast.inside import check_known
from mmfast.progress import _three_digits
from mmfast.tabular import options
from mmfast.training.loop import fit

SHORT = [("train.steps", "1"), ("train.sample_every", "0"), ("evaluate.samples", "0"), ("sample.steps", "1")]
RED, GREY = np.full((8, 8, 3), (200, 10, 10)), np.arange(64).reshape(8, 8)


def pictures(folder, names, pixels=RED):
    folder.mkdir(parents=True, exist_ok=True)
    for k, name in enumerate(names):
        Image.fromarray((pixels + k).astype(np.uint8)).save(folder / f"{name}.png")


def of_folder(root, **modalities):
    image = {"kind": "image", "channels": 3, "size": 8}
    plain = {"anchor": "image", "data": {"kind": "folder", "root": str(root)}, "backbone": {"kind": "mlp"}}
    return configs.from_plain({**plain, "modalities": {"image": image, **modalities}}, "test")


def test_an_empty_mapping_on_the_command_line_empties_what_the_file_says(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(
        "anchor: image\nbackbone: {kind: mlp}\ndata: {kind: folder, root: ., folders: {image: pics}}\nmodalities:\n"
        "  image: {kind: image, size: 8}\n  label: {kind: label}\nsample: {guidance_scale: {label: 2}}\n"
    )
    for key in ("data.folders", "sample.guidance_scale"):
        section, _, name = key.partition(".")
        assert getattr(getattr(configs.load(str(file)), section), name)
        assert getattr(getattr(configs.load(str(file), [(key, "{}")]), section), name) == {}


def test_a_table_without_a_modality_is_left_out(tmp_path):
    pictures(tmp_path / "image", "abcdefgh")
    (tmp_path / "metadata.csv").write_text("file_name,text\n" + "".join(f"image/{x}.png,a {x}\n" for x in "abcdefgh"))
    assert len(build_data(of_folder(tmp_path)).train) > 0
    with pytest.raises(MmfastError, match="has the columns text; one should be a modality: label"):
        build_data(of_folder(tmp_path, label={"kind": "label", "classes": 2}))
    (tmp_path / "labels.csv").write_text("file_name,breed name\n" + "".join(f"image/{x}.png,cat\n" for x in "abcd"))
    (tmp_path / "metadata.csv").unlink()
    assert any("'breed name', which cannot be a modality's name; rename it" in x for x in guess(tmp_path, 8).notes)


def test_a_caption_that_cannot_be_read_is_an_example_that_cannot(tmp_path):
    pictures(tmp_path / "image", [f"{k:02}" for k in range(20)])
    (tmp_path / "text").mkdir()
    for k in range(20):
        (tmp_path / "text" / f"{k:02}.txt").write_bytes(b"caf\xe9" if k == 7 else f"thing {k}".encode())
    config = of_folder(tmp_path, text={"kind": "caption", "text_encoder": "minilm"})
    assert "thing 3" in with_found(config).modalities["text"].captions


def test_a_label_that_is_no_class_does_not_hide_the_shares_of_the_others(tmp_path):
    pictures(tmp_path / "image", [f"{k:02}" for k in range(30)])
    (tmp_path / "label").mkdir()
    for k in range(30):
        (tmp_path / "label" / f"{k:02}.txt").write_text("oops" if k == 7 else str(k % 3))
    config = of_folder(tmp_path, label={"kind": "label", "classes": 3})
    assert not with_found(config).modalities["label"].class_counts  # it is told of when it is read
    config.data.on_error = "skip"
    assert len(with_found(config).modalities["label"].class_counts) == 3


def test_what_is_called_as_masks_is_not_the_anchor(tmp_path):
    """Coloured pictures, as many as of the other folder and first by their names."""
    for name in ("annotated", "people"):
        pictures(tmp_path / name, "abcd")
    (tmp_path / "vec").mkdir()
    for x in "abcd":
        np.save(tmp_path / "vec" / f"{x}.npy", np.zeros(3))
    assert guess(tmp_path, 8).anchor == "people"


def test_a_label_is_not_known_in_part():
    part = build_model(configs.load("digits", [("backbone", "{kind: mlp, width: 8, blocks: 1}")])).part("label")
    with pytest.raises(MmfastError, match="known has label, a label, which has no parts; give all of it"):
        known_part(part, "0", "known label")


@pytest.mark.parametrize("names", [("with_mask", "without_mask"), ("cats", "masked_owl"), ("car", "segway")])
def test_classes_may_be_called_as_masks_are(tmp_path, names):
    for name in names:
        pictures(tmp_path / name, "abcd")
    found = guess(tmp_path, 8)
    assert found.folders == {"image": "."} and found.modalities["label"]["names"] == sorted(names)


def test_pictures_may_lie_beside_the_folder_of_their_masks(tmp_path):
    pictures(tmp_path, "abcdefgh")
    pictures(tmp_path / "mask", "abcdefgh", GREY % 2)
    found = guess(tmp_path, 8)
    assert found.modalities["mask"] == {"kind": "mask", "classes": 9, "size": 8} and found.folders == {"image": "."}
    assert found.examples == 8


def test_the_next_command_of_init_can_be_run(tmp_path, monkeypatch, capsys):
    """Where pictures lie in the current folder a run may not; and a name has a space."""
    pictures(tmp_path / "pics", [f"{k:02}" for k in range(30)])
    monkeypatch.chdir(tmp_path / "pics")
    monkeypatch.setattr("mmfast.propose.step_time", lambda config: 0.01)
    assert main(["init", ".", "--out", "my own.yaml", "--minutes", "1", "--quiet"]) == 0
    words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert words[:4] == ["next:", "mmfast", "check", "my own.yaml"] and words[-2] == "--out"
    assert words[-1] == os.path.join("..", "runs", "my own")
    assert _run_of(of_folder(tmp_path / "other"), "x") == os.path.join("runs", "x")


@pytest.mark.parametrize("size", ["30", "50", "10x14", "49"])
def test_init_takes_any_size(tmp_path, size, monkeypatch):
    monkeypatch.setattr("mmfast.propose.step_time", lambda config: 0.01)
    pictures(tmp_path / "image", [f"{k:02}" for k in range(12)])
    out = str(tmp_path / "my.yaml")
    assert main(["init", str(tmp_path), "--out", out, "--size", size, "--minutes", "0.01", "--quiet"]) == 0
    build_model(configs.load(out))


def test_guidance_by_nothing_is_refused(tmp_path):
    import mmfast
    from mmfast import sweep

    run = fit(tiny(train__steps=1), str(tmp_path / "run"), build_data(tiny()), quiet=True).run
    loaded = mmfast.load(run.folder, "cpu")
    with pytest.raises(MmfastError, match="guidance_scale is set, but nothing is given to guide by"):
        loaded.sample(n=1, guidance_scale=3, steps=1)
    for over, given, words in (
        ({"guidance_scale": ["1", "2"]}, [], "over has guidance_scale, but nothing is given"),
        ({"guidance_scale.mask": ["1", "2"]}, ["label"], "over has guidance_scale.mask, but mask is not given"),
    ):
        with pytest.raises(MmfastError, match=words):
            sweep.sweep(loaded.model, loaded.config, loaded.data, over, given)
    samples = loaded.sample(label=3, n=1, guidance_scale={"label": np.float32(2)}, steps=1)
    samples.save(tmp_path / "saved")


def test_sprites_of_the_same_size_in_bytes_are_not_taken_for_the_old_ones(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(b"one")
    before = sprites._listing(tmp_path, [file])
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))
    assert sprites._listing(tmp_path, [file]) != before


def test_a_reader_that_unpickles_files_of_the_current_folder_is_none():
    pytest.importorskip("torchvision")
    for name in ("LSUN", "LSUNClass"):
        with pytest.raises(MmfastError, match="whose reader runs code from a file in the current folder"):
            torchvision_sets._load(name, "x", False, "{}")


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("sample RUN --guidance-scale 2", "--guidance-scale is not an option of `mmfast sample` (did you mean "
         "--guidance_scale?); see `mmfast sample --help`"),
        ("sample RUN label=3", "label=3 is not an option of `mmfast sample` (did you mean --given label=3?); see"),
        ("eval RUN --sample 10", "--sample is not an option of `mmfast eval` (did you mean --samples?); see"),
        ("info RUN --xyz", "RUN is not an option of `mmfast info`; see `mmfast info --help`"),
    ],
)  # fmt: skip
def test_a_word_that_is_no_option_is_answered_by_the_nearest(words, meant, capsys):
    assert main(words.split()) == 2 and f"mmfast: error: {meant}" in capsys.readouterr().err


def test_an_option_without_its_section_is_answered_with_it():
    with pytest.raises(MmfastError, match=r"key is 'steps'; it should be .*; did you mean 'train.steps'\?"):
        configs.load("digits", {"steps": 5})


def test_overrides_may_be_a_dict_of_values():
    values = {"train.steps": 7, "train.cuda_graphs": False, "sample.first": ["label"], "loss.min_snr_gamma": None,
              "modalities.label": {"kind": "label", "classes": 10, "loss_weight": 0.5}}  # fmt: skip
    found = configs.load("digits", values)
    texts = {
        "train.steps": "7",
        "sample.first": "[label]",
        "modalities.label": "{kind: label, classes: 10, loss_weight: 0.5}",
    }
    assert found == configs.load("digits", list(texts.items()))
    for overrides, wrong in (
        ([("train.steps", 5)], r"overrides has \('train.steps', 5\); it should be a dict"),
        (["train.steps"], "overrides has 'train.steps'"),
        ({"train.steps": object()}, r"overrides\['train.steps'\] is a object; it should be a number, a text"),
    ):
        with pytest.raises(MmfastError, match=wrong):
            configs.load("digits", overrides)
    with pytest.raises(MmfastError, match="source is a dict; it should be a preset's name or the path of a YAML file"):
        configs.load({"anchor": "image"})


def test_a_config_without_data_is_said_to_be_for_digits(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where check puts its contact sheet
    file = tmp_path / "mine.yaml"
    file.write_text("anchor: image\nmodalities: {image: {kind: image, channels: 1, size: 8}}\nbackbone: {kind: mlp}\n")
    said = f"mmfast: {file} has no section data, so the data set is digits\n"
    for command in (["check", str(file), "--quiet"], ["train", str(file), "--out", str(tmp_path / "a"), *flags(SHORT)]):
        for more in ([], ["--data.kind", "digits"]):
            assert main([*command, *more]) == 0
            assert (said in capsys.readouterr().err) == (not more)
    configs.load(file)  # for data of one's own
    assert not capsys.readouterr().err


def test_an_anchor_that_is_not_named_is_asked_for():
    photos = {"kind": "image", "channels": 1, "size": 8}
    with pytest.raises(MmfastError, match=r"x has no anchor, and no modality 'image'; .* as in `anchor: photos`"):
        configs.from_plain({"data": {"kind": "digits"}, "modalities": {"photos": photos}}, "x")


def hidden(tmp_path, **options):
    """A run-like model whose anchor is named otherwise, with hidden parts of it."""
    photos = {"kind": "image", "channels": 3, "size": 8}
    plain = {
        "anchor": "photos",
        "data": {"kind": "digits"},
        "backbone": {"kind": "mlp", "width": 16, "blocks": 2, "features": 4},
    }
    parts = {"photos": photos, "hidden": {"kind": "masked", "size": 8, "block": 4, **options}}
    return configs.from_plain({**plain, "modalities": parts}, "test")


def test_hidden_parts_are_those_of_the_anchor(tmp_path):
    assert hidden(tmp_path).modalities["hidden"].of == "photos"
    assert hidden(tmp_path, of="other").modalities["hidden"].of == "other"


def test_a_picture_that_hides_nothing_is_refused(tmp_path):
    part = build_model(hidden(tmp_path)).part("hidden")
    opaque, clear = tmp_path / "a.png", tmp_path / "b.png"
    Image.new("RGB", (8, 8), "red").save(opaque)
    picture = Image.new("RGBA", (8, 8), "red")
    picture.putpixel((2, 3), (0, 0, 0, 0))
    picture.save(clear)
    wanted = r"hides nothing; it should be a PNG file that is transparent where the model should draw"
    for value in (str(opaque), opaque):
        with pytest.raises(MmfastError, match=rf"hidden=.*a\.png {wanted}"):
            taken(part, value, "hidden")
    with Image.open(opaque) as value, pytest.raises(MmfastError, match=f"^hidden {wanted}"):
        taken(part, value, "hidden")
    with pytest.raises(MmfastError, match=rf"^hidden\[1\] {wanted}"):
        taken(part, [picture, np.zeros((8, 8, 3), np.uint8)], "hidden")
    whole = torch.ones(2, 4, 8, 8)
    assert torch.equal(taken(part, whole, "hidden"), whole)  # an example, as from a data set
    for value in (clear, str(clear), picture):
        assert taken(part, value, "hidden")[0, -1].sum() == 63
    x = part.parse(str(clear))[None]
    with pytest.raises(MmfastError, match="known has hidden, whose hidden parts are those that are transparent"):
        check_known(build_model(hidden(tmp_path)), {"hidden": x}, {"hidden": x[0] > 0})


def test_a_table_with_semicolons_is_named(tmp_path):
    (tmp_path / "x.csv").write_text("a;b\n1;2\n3;4\n5;6\n")
    with pytest.raises(MmfastError, match=r"x\.csv has columns that are separated by semicolons; save it with commas"):
        options(tmp_path / "x.csv", "x.csv")


def test_a_folder_that_is_named_otherwise_is_pointed_to(tmp_path):
    pictures(tmp_path / "photos", "abcdefgh")
    config = of_folder(tmp_path)
    assert folder.look(config.data, config.modalities, "image").problems == [
        f"data.root: {tmp_path}/image holds no image files ({', '.join(EXTENSIONS)}); name its folder in data.folders: "
        "there are photos"
    ]
    (tmp_path / "image").mkdir()
    assert folder.look(config.data, config.modalities, "image").problems == [
        f"data.root: {tmp_path}/image holds no image files ({', '.join(EXTENSIONS)})"
    ]


@pytest.mark.parametrize(("rate", "text"), [(1310.4, "1,310"), (99.96, "100"), (7.123, "7.12"), (123456, "123,000")])
def test_a_rate_is_written_without_an_exponent(rate, text):
    assert _three_digits(rate) == text
