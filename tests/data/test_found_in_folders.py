"""What a review of readers and of `mmfast init` found: values read wrongly, and files dropped in silence."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from mmfast import MmfastError
from mmfast import config as configs
from mmfast.build import build_data, with_found
from mmfast.cli import main
from mmfast.data.base import InMemory
from mmfast.data.decoded import _in_use, decoded
from mmfast.data.items import x_of
from mmfast.guess import guess
from mmfast.image_files import load_picture, read_header
from mmfast.mask_values import class_numbers, coding_of, two_classes
from mmfast.modalities.label import LabelSpec, counted
from mmfast.modalities.table import TableSpec
from mmfast.plain_yaml import dump_yaml, load_yaml
from mmfast.survey import survey

RANDOM = np.random.default_rng(0)
NET = {"backbone": {"kind": "mlp", "width": 16, "blocks": 1, "features": 4}}
IMAGE = {"kind": "image", "size": 16}


def save(root, name, array):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(root / name)


def images(root, folder="image", count=12, ending="png"):
    for k in range(count):
        save(root, f"{folder}/{k:02}.{ending}", RANDOM.integers(0, 256, (16, 16, 3)))


def config(root, modalities, **data):
    plain = {**NET, "data": {"kind": "folder", "root": str(root), "cache_gb": 0, **data}, "modalities": modalities}
    return configs.from_plain(plain, "test")


# --- texts in a config ---

ODD = [
    "???",
    "a???b",
    "${x}",
    "price ${11} off",
    "-.5",
    "+.5",
    "a\x85b",
    "\u2028",
    "é",
    "😀",
    "no",
    "0123",
    "~",
    "$",
    "a: b",
]


@pytest.mark.parametrize("allow_unicode", [True, False])
@pytest.mark.parametrize("flow", [True, False, None])
def test_every_text_of_a_list_comes_back(allow_unicode, flow):
    written = dump_yaml({"a": ODD, "b": [ODD]}, allow_unicode=allow_unicode, default_flow_style=flow)
    assert load_yaml(written, "x") == {"a": ODD, "b": [ODD]}


def test_what_is_written_twice_needs_no_alias():
    assert load_yaml(dump_yaml({"a": ODD, "b": ODD}), "x")["b"] == ODD


def test_class_names_of_any_text_survive_a_run(tmp_path):
    found = config(tmp_path, {"image": IMAGE, "label": {"kind": "label", "classes": len(ODD), "names": ODD}})
    again = configs.from_plain(load_yaml(configs.to_yaml(found), "run"), "run", folder=None)
    assert again.modalities["label"].names == ODD and again == found
    with pytest.raises(MmfastError, match=r"\$\{...\} is not expanded: write the value itself"):
        load_yaml("data: {root: '${x}'}", "x")


def test_a_run_with_such_a_class_can_be_opened(tmp_path):
    images(tmp_path)
    rows = "".join(f"{k:02}.png,{['???', '${a}'][k % 2]}\n" for k in range(12))
    (tmp_path / "labels.csv").write_text(f"file_name,label\n{rows}")
    made = tmp_path / "my.yaml"
    made.write_text(configs.to_yaml(config(tmp_path, {"image": IMAGE, "label": {"kind": "label", "classes": 2}})))
    words = ["--train.steps", "1", "--train.batch_size", "2", "--evaluate.samples", "0", "--quiet"]
    assert main(["train", str(made), "--out", str(tmp_path / "run"), *words, "--train.device", "cpu"]) == 0
    given = ["--given", "label=???", "--steps", "1", "--n", "1", "--quiet", "--device", "cpu"]
    assert main(["sample", str(tmp_path / "run"), *given]) == 0


# --- masks ---


@pytest.mark.parametrize("values", [[0, 2], [0, 3], [3], [0, 1, 2], [255], [0, 255], [7, 255]])
@pytest.mark.parametrize("ending", ["gif", "png"])
def test_a_mask_with_a_palette_of_its_own_values_has_these(tmp_path, values, ending):
    array = np.resize(np.array(values, np.uint8), (8, 8))
    picture = Image.fromarray(array) if ending == "gif" else Image.fromarray(array).quantize(len(values))
    picture.save(tmp_path / f"x.{ending}")
    found = load_picture(tmp_path / f"x.{ending}")
    assert found.mode == "P"
    assert np.array_equal(np.asarray(class_numbers("x", found)), array)


@pytest.mark.parametrize(
    "colours", [[(0, 0, 0), (128, 0, 0), (128, 128, 128)], [(0,) * 3, (100,) * 3, (200,) * 3], [(5, 5, 5), (9, 9, 8)]]
)
def test_indices_count_where_a_palette_shows_them(colours):
    """As in Pascal VOC, whose class 7 is grey; or in greys that are no class numbers."""
    picture = Image.fromarray(np.resize(np.arange(len(colours), dtype=np.uint8), (6, 6)))
    picture.putpalette([x for colour in colours for x in colour])
    assert np.array_equal(np.asarray(class_numbers("x", picture)), np.asarray(picture))


def quantised(root, colours):
    """Masks of two colours each, numbered by each file's own palette."""
    for k in range(12):
        array = np.zeros((16, 16, 3), np.uint8)
        array[4:12, 4:12] = colours[k % len(colours)]
        (root / "mask").mkdir(exist_ok=True)
        Image.fromarray(array).quantize(2).save(root / f"mask/{k:02}.png")


def test_palettes_that_differ_make_the_colours_the_classes(tmp_path):
    images(tmp_path)
    quantised(tmp_path, [(255, 0, 0), (0, 255, 0), (0, 0, 255)])
    colours = ["#000000", "#0000ff", "#00ff00", "#ff0000"]
    found = guess(tmp_path, 16)
    assert found.modalities["mask"] == {"kind": "mask", "classes": 4, "size": 16, "colours": colours}
    by_number = config(tmp_path, {"image": IMAGE, "mask": {"kind": "mask", "size": 16, "classes": 4}})
    (wrong,) = survey(by_number).wrong
    assert "have different palettes: " in wrong and "name the classes' colours in modalities.NAME.colours" in wrong
    assert not survey(config(tmp_path, {"image": IMAGE, "mask": found.modalities["mask"]})).wrong


def cup_and_disc():
    array = np.full((40, 40), 255, np.uint8)
    array[10:30, 10:30], array[16:24, 16:24] = 128, 0
    return array


def test_three_levels_are_not_two_classes(tmp_path):
    with pytest.raises(MmfastError, match="x holds the values 0, 128, 255; a mask of two classes should hold"):
        coding_of("x", cup_and_disc())
    images(tmp_path)
    for k in range(12):
        save(tmp_path, f"mask/{k:02}.png", cup_and_disc())
    colours = ["#000000", "#808080", "#ffffff"]
    assert guess(tmp_path, 16).modalities["mask"] == {"kind": "mask", "classes": 3, "size": 16, "colours": colours}
    assert survey(config(tmp_path, {"image": IMAGE, "mask": {"kind": "mask", "size": 16}})).wrong


def test_antialiased_edges_are_two_classes():
    """Of a disc that is drawn four times as large, and of one edge whose pixels all have the same grey."""
    y, x = np.mgrid[:160, :160]
    disc = np.asarray(Image.fromarray(np.uint8(((x - 80) ** 2 + (y - 80) ** 2 < 3600) * 255)).reduce(4))
    assert coding_of("x", disc) == "0/255" and two_classes("x", disc).max() == 1
    edge = np.zeros((20, 20), np.uint8)
    edge[:, 10], edge[:, 11:] = 128, 255
    assert coding_of("x", edge) == "0/255"
    edge[3:6, 3:6] = 128  # a blot, of whose pixels one has only its like around it
    assert coding_of("x", edge) == "0/255"
    known = cup_and_disc() != 128
    assert coding_of("x", cup_and_disc(), known) == "0/255"


@pytest.mark.parametrize("ending", ["jpg", "tif"])
def test_masks_in_other_files_are_named(tmp_path, ending):
    images(tmp_path, ending="jpg")
    for k in range(12):
        save(tmp_path, f"masks/{k:02}.{ending}", np.eye(16) * 255)
    assert guess(tmp_path, 16).notes == [
        f"masks: 12 files (.{ending}); masks are read from .png, .bmp, .gif, so convert them"
    ]


# --- layouts ---


@pytest.mark.parametrize("parts", [["train", "val"], ["data"]])
def test_images_and_masks_below_each_split_are_not_examples_alike(tmp_path, parts):
    for part in parts:
        images(tmp_path / part, "images")
        for k in range(12):
            save(tmp_path, f"{part}/masks/{k:02}.png", np.eye(16) * 255)
    with pytest.raises(MmfastError, match=rf"{tmp_path / parts[0]} holds folders of images \(images\) and of masks"):
        guess(tmp_path, 16)
    assert {*guess(tmp_path / parts[0], 16).modalities} == {"images", "masks"}


def test_a_class_may_be_called_label(tmp_path):
    for name in ("bottle", "cap", "label"):
        images(tmp_path, name, 6)
    found = guess(tmp_path, 16)
    assert "label" not in found.modalities and found.modalities["class"]["names"] == ["bottle", "cap", "label"]
    seen = survey(config(tmp_path, found.modalities, folders=found.folders))
    assert not seen.wrong and sum(seen.seen["class"].classes.values()) == 18


def test_folders_that_are_too_many_for_classes_are_named(tmp_path):
    for k in range(30):
        images(tmp_path, f"person{k}", 1)
    assert guess(tmp_path, 16).notes == ["the 30 folders, which are too many for classes of 30 examples"]


def test_boxes_are_no_captions(tmp_path):
    images(tmp_path, count=30)
    for k in range(30):
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / f"labels/{k:02}.txt").write_text(f"0 0.{k} 0.5 0.2 0.{k}")
    assert "labels" not in guess(tmp_path, 16).modalities


def test_a_table_modality_may_have_the_name_of_its_column(tmp_path):
    images(tmp_path)
    (tmp_path / "labels.csv").write_text("file_name,radius\n" + "".join(f"{k:02}.png,{k + 0.5}\n" for k in range(12)))
    row = {"kind": "table", "columns": ["radius"], "weight": {"kind": "none"}}
    assert survey(config(tmp_path, {"image": IMAGE, "radius": row})).wrong == []


# --- orientation ---


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("raw", [True, False])
def test_a_png_says_later_or_in_text_how_it_is_turned(tmp_path, late, raw):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = exif.tobytes()
    text = b"Raw profile type exif\0\nexif\n" + f"{len(data):8}\n{data.hex()}\n".encode()
    save(tmp_path, "image/0.png", np.zeros((30, 60, 3)))
    plain = (tmp_path / "image/0.png").read_bytes()
    at = len(plain) - 12 if late else 33
    more = chunk(b"tEXt", text) if raw else chunk(b"eXIf", data[6:])
    (tmp_path / "image/0.png").write_bytes(plain[:at] + more + plain[at:])
    assert read_header(tmp_path / "image/0.png").size == load_picture(tmp_path / "image/0.png").size == (30, 60)
    save(tmp_path, "image/1.png", np.zeros((30, 60, 3)))
    for k in range(2):
        save(tmp_path, f"mask/{k}.png", np.tile([0, 1], (30, 30)))
    assert (
        "they differ in shape"
        in survey(config(tmp_path, {"image": IMAGE, "mask": {"kind": "mask", "size": 16}})).wrong[0]
    )


# --- other packages' values, and the cache ---


@pytest.mark.parametrize("classes", [[0.5, 1.0], [[1, 2]], [object()]])
def test_labels_of_no_kind_are_no_traceback(classes):
    assert counted(LabelSpec(classes=3), classes) == {}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_name_their_example(value):
    with pytest.raises(MmfastError, match="example 3 of x, row holds NaN or infinite values"):
        x_of(TableSpec(columns=["a", "b"]), np.array([1.0, value]), "example 3 of x, row")


def test_held_out_examples_do_not_take_the_room_of_those_to_train_on(tmp_path):
    """The second file fits only without the first, which is in use; once it is not, it goes."""
    parts = [InMemory({"x": torch.rand(count, 1000)}) for count in (20, 10)]
    keys = [[bytes([part, k]) * 16 for k in range(len(x))] for part, x in enumerate(parts)]
    blanks, limit = {"x": torch.zeros(1000)}, 100_000 / 1e9

    def kept(part):
        return decoded(parts[part], blanks, keys[part], {"part": part}, tmp_path, limit)

    train = kept(0)
    assert train.file.exists() and kept(1) is parts[1] and train.file.exists()
    file = train.file
    del train
    assert file not in _in_use and kept(1) is not parts[1] and not file.exists()


def test_the_statistics_of_a_table_do_not_make_the_cache_another(tmp_path, monkeypatch):
    images(tmp_path / "data")
    row = {"kind": "table", "columns": ["a"], "weight": {"kind": "none"}}
    for count in (11, 12):
        rows = "".join(f"{k:02}.png,{k}\n" for k in range(count))
        (tmp_path / "data/labels.csv").write_text(f"file_name,a\n{rows}")
        made = config(tmp_path / "data", {"image": IMAGE, "row": row}, cache_gb=1)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        build_data(with_found(made)).train.__getitems__([0])
    names = {path.name.rsplit("-", 1)[0] for path in (tmp_path / "cache").rglob("decoded-*.rows")}
    assert len(names) == 2  # one for each part


def test_a_folder_that_no_config_can_name_is_refused(tmp_path, capsys):
    odd = tmp_path / "b\udce9d"
    try:
        images(odd)
    except OSError:
        pytest.skip("the file system takes only UTF-8")
    assert main(["init", str(odd), "--out", str(tmp_path / "x.yaml"), "--quiet"]) == 2
    assert "which is not UTF-8, as a config is; rename the folder" in capsys.readouterr().err
