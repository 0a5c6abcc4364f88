"""Fashion-MNIST, the sprites and the judge: files made here, whose every pixel is known, and the real packages."""

import gzip
import shutil
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mmfast.data import fashion, judge, sprites
from mmfast.errors import MmfastError


def parts(size, **more):
    return {"image": SimpleNamespace(size=size), **more}


# Fashion-MNIST


def write_idx(root, name, array):
    head = struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape)
    (root / f"{name}-idx{array.ndim}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes(), 1))


@pytest.fixture(scope="module")
def clothes(tmp_path_factory):
    """A folder as the package's, and the arrays in it: random pictures among black ones, which compress at once."""
    root, random, arrays = tmp_path_factory.mktemp("clothes"), np.random.default_rng(0), {}
    for name, count in (("train", 60_000), ("t10k", 10_000)):
        images = np.zeros((count, 28, 28), np.uint8)
        images[::500] = random.integers(0, 256, images[::500].shape)
        labels = random.integers(0, 10, count, dtype=np.uint8)
        arrays[name] = images, labels
        write_idx(root, f"{name}-images", images)
        write_idx(root, f"{name}-labels", labels)
    return root, arrays


def test_fashion_gives_the_bytes_of_the_files(clothes):
    root, arrays = clothes
    data = fashion.open(fashion.Spec(root=str(root)), parts(28), "image")
    for part, name in ((data.train, "train"), (data.test, "t10k")):
        images, labels = arrays[name]
        assert len(part) == len(labels)
        rows = [len(labels) - 1, 0, 1500]
        batch = part.__getitems__(rows).data
        assert batch["image"].dtype == torch.float32 and batch["image"].shape == (3, 1, 28, 28)
        assert torch.equal(batch["image"][:, 0], torch.from_numpy(images[rows].astype(np.float32)) / 127.5 - 1)
        assert batch["label"].tolist() == labels[rows].tolist() and batch["label"].dtype == torch.int64
        assert np.array_equal(batch["mask"].numpy(), images[rows] > 0) and batch["mask"].dtype == torch.int64
        assert torch.equal(fashion.outline(batch["image"]), batch["mask"])


@pytest.mark.parametrize("size", [16, 32])
def test_fashion_in_other_sizes(clothes, size):
    root, arrays = clothes
    data = fashion.open(fashion.Spec(root=str(root)), parts(size), "image")
    found = ((data.test.__getitems__([500]).data["image"][0, 0] + 1) * 127.5).numpy()
    edged = np.pad(arrays["t10k"][0][500].astype(float), 2)
    truth = edged if size == 32 else edged.reshape(16, 2, 16, 2).mean((1, 3))
    assert found.shape == (size, size) and np.abs(found - truth).max() <= (0 if size == 32 else 0.5) + 1e-4


def test_fashion_for_the_choice_of_options(clothes):
    final, choice = (
        fashion.open(fashion.Spec(root=str(clothes[0]), validation=validation), parts(28), "image")
        for validation in (False, True)
    )
    assert (len(choice.train), len(choice.test)) == (50_000, 10_000)
    for part, start, rows in ((choice.train, 0, [0, 49_999]), (choice.test, 50_000, [0, 9_999])):
        a, b = part.__getitems__(rows).data, final.train.__getitems__([start + row for row in rows]).data
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_fashion_says_what_is_wrong_with_the_files(clothes, tmp_path):
    with pytest.raises(MmfastError, match=r"train-images-idx3-ubyte.gz does not exist.*dataset-fashion-mnist"):
        fashion.open(fashion.Spec(root=str(tmp_path)), parts(28), "image")
    with pytest.raises(MmfastError, match=r"size is 20.*16, 28, 32"):
        fashion.open(fashion.Spec(root=str(clothes[0])), parts(20), "image")
    shutil.copy(clothes[0] / "train-images-idx3-ubyte.gz", tmp_path)
    labels = struct.pack(">II", 0x0801, 60_000) + bytes(60_001)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    with pytest.raises(MmfastError, match=r"train-labels.* is 60009 bytes"):
        fashion.open(fashion.Spec(root=str(tmp_path)), parts(28), "image")
    write_idx(tmp_path, "train-images", np.zeros((2, 28, 28), np.uint8))
    with pytest.raises(MmfastError, match="it should be an idx file of 60000 x 28 x 28"):
        fashion.open(fashion.Spec(root=str(tmp_path)), parts(28), "image")
    file = tmp_path / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(MmfastError, match="cannot be read"):
        fashion.open(fashion.Spec(root=str(tmp_path)), parts(28), "image")


@pytest.mark.skipif(not Path(fashion.Spec().root).is_dir(), reason=f"apt-get install {fashion.PACKAGE}")
def test_the_real_fashion():
    """As the paper says: 60,000 and 10,000, of each class a tenth; and the mean grey, 0.286, that is widely used."""
    data = fashion.open(fashion.Spec(), parts(28), "image")
    assert torch.bincount(data.train.labels.long()).tolist() == [6000] * 10
    assert torch.bincount(data.test.labels.long()).tolist() == [1000] * 10
    assert float(data.train.images.float().mean() / 255) == pytest.approx(0.2860, abs=1e-4)


# The judge


def stripes(count):
    """Three kinds of noisy pictures, [N, 1, 16, 16]: flat, stripes across, stripes down. No mirror changes a kind."""
    generator = torch.Generator().manual_seed(count)
    labels = torch.randint(0, 3, (count,), generator=generator)
    wave = torch.tensor([0.7, 0.7, -0.7, -0.7]).repeat(4)
    kinds = torch.stack([torch.zeros(16, 16), wave[:, None].expand(16, 16), wave[None].expand(16, 16)])
    noise = 0.3 * torch.randn(count, 1, 16, 16, generator=generator)
    return (kinds[labels][:, None] + noise).clamp(-1, 1), labels


def test_a_judge_learns_and_is_kept(tmp_path, monkeypatch):
    images, labels = stripes(512)

    def make(**more):
        options = {"key": {"data": "stripes"}, "cache": tmp_path, "epochs": 8, "width": 32, "quiet": True}
        return judge.classifier(judge.Classified(images, labels, 3), **{**options, **more})

    before = torch.random.get_rng_state()
    first = make()
    assert torch.equal(torch.random.get_rng_state(), before)
    fresh, truth = stripes(300)
    assert judge.accuracy(first, fresh, truth) > 0.95
    probabilities = first.probabilities(fresh)
    assert torch.equal(first(fresh), probabilities.argmax(1)) and first(fresh).dtype == torch.int64
    assert torch.allclose(probabilities.sum(1), torch.ones(300)) and not probabilities.requires_grad
    features = first.features(fresh)
    assert features.shape[0] == 300 and features.dtype == torch.float32
    assert torch.allclose(first.out(features).softmax(1), probabilities)
    # In parts or all at once, and one by one: the same, for nothing depends on the batch.
    assert torch.allclose(torch.cat([first.features(x[None]) for x in fresh[:4]]), features[:4], atol=1e-4)

    again = make(cache=tmp_path / "elsewhere")
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    other = make(seed=1)
    assert not torch.equal(first.out[1].weight, other.out[1].weight)
    assert len(list(tmp_path.glob("judge-*.safetensors"))) == 2
    monkeypatch.setattr(judge, "_train", lambda *_: pytest.fail("trained again"))
    assert torch.equal(make().out[1].weight, first.out[1].weight)
    with pytest.raises(MmfastError, match="labels"):
        judge.classifier(judge.Classified(images, labels + 1, 3), key={}, cache=tmp_path)


def test_bytes_are_pixels():
    levels = torch.arange(256, dtype=torch.uint8)
    assert judge.as_floats(levels).tolist() == [np.float32(np.float32(k) / np.float32(127.5) - 1) for k in range(256)]


# The sprites

TEAM, SKIN = (0xD6, 0x00, 0x7F), (200, 120, 40)


def draw(file, alpha=255, size=(72, 72), box=(20, 20, 48, 48)):
    """A body of SKIN with a square of team colour at its left top, and a half-transparent shadow below it."""
    pixels = np.full((size[1], size[0], 4), (90, 200, 10, 0), np.uint8)
    left, top, right, bottom = box
    pixels[top:bottom, left:right] = (*SKIN, alpha)
    pixels[top : top + 8, left : left + 8] = (*TEAM, alpha)
    pixels[bottom : bottom + 4, left:right] = (40, 30, 90, 128)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)
    return pixels


@pytest.fixture(scope="module")
def game(tmp_path_factory):
    root = tmp_path_factory.mktemp("game")
    core = root / "core"
    core.mkdir()
    (core / "team-colors.cfg").write_text("[color_palette]\n    # magenta is\n    magenta=F49AC1,D6007F\n")
    for race, letters in (("elves", "abcdefghij"), ("orcs", "klmnopqrst")):
        for letter in letters:
            for name in ("", "-attack-1", "-ne", "+female", "+female-die-2", "2"):
                draw(core / f"images/units/{race}/{letter * 3}{name}.png")
    draw(core / "images/units/orcs/rider/kkk-run-1.png")  # a folder more belongs to its race
    draw(core / "images/units/orcs/kkk-flame.png", box=(30, 30, 34, 34))  # no body
    draw(core / "images/units/orcs/kkk-ghost.png", alpha=100)
    draw(core / "images/units/orcs/kkk-far.png", size=(200, 72), box=(120, 10, 190, 60))  # outside the middle
    draw(core / "images/units/unknown.png")  # of no race
    for k in range(10):
        for n in ("", "2"):
            tile = Image.new("RGBA", (72, 72), (10 * k, 0, 0, 0))
            # The hexagon: its edges go from (0, 36) to (18, 0).
            for y in range(72):
                inset = (36 - y if y < 36 else y - 35) // 2
                tile.paste((10 * k, 2 * y, 60, 255), (inset, y, 72 - inset, y + 1))
            file = core / f"images/terrain/grass/{'abcdefghij'[k]}{n}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            tile.save(file)
    Image.new("RGBA", (72, 72), (255, 255, 255, 255)).save(core / "images/terrain/grass/green-editor.png")
    Image.new("RGBA", (72, 72), (255, 255, 255, 90)).save(core / "images/terrain/grass/edge.png")
    return root


def opened(game, tmp_path, size=32, **options):
    more = {"label": options.pop("label")} if "label" in options else {}
    return sprites.open(sprites.Spec(root=str(game), cache=str(tmp_path), **options), parts(size, **more), "image")


def levels(images):
    return ((images + 1) * 127.5).round().int()


def test_a_sprite_over_grey(game, tmp_path):
    """At 72 the picture itself; at 32 the means and majorities of its middle, worked out with numpy."""
    pixels = draw(tmp_path / "one.png").astype(float)
    alpha = pixels[..., 3:] / 255
    over = pixels[..., :3] * alpha + 128 * (1 - alpha)
    classes = np.zeros((72, 72), int)
    classes[20:48, 20:48], classes[20:28, 20:28], classes[48:52, 20:48] = 2, 3, 1
    for size, middle, factor in ((72, slice(None), 1), (36, slice(None), 2), (64, slice(4, 68), 1),
                                 (32, slice(4, 68), 2), (16, slice(4, 68), 4)):  # fmt: skip
        data = opened(game, tmp_path, size)
        batch = data.test.__getitems__([0]).data
        truth = over[middle, middle].reshape(size, factor, size, factor, 3).mean((1, 3)).transpose(2, 0, 1)
        assert np.abs(levels(batch["image"][0]).numpy() - truth).max() <= 1.5
        # The drawing's edges lie on multiples of four, so that no square is divided.
        assert np.array_equal(batch["mask"][0].numpy(), classes[middle, middle][::factor, ::factor])


def test_a_majority_and_its_ties():
    classes = torch.tensor([[[0, 0, 1, 2, 3, 0], [1, 0, 1, 2, 0, 0]]], dtype=torch.uint8)
    assert sprites.majority(classes, 2).tolist() == [[[0, 2, 0]]]
    pixels = np.array([[9, 9, 9, 8], [9, 9, 9, 9], [9, 9, 9, 246], [9, 9, 9, 247], [*TEAM, 247], [*TEAM, 100]])
    assert sprites.pixel_classes(pixels, [0xD6007F]).tolist() == [0, 1, 1, 2, 3, 1]


def test_units():
    unit = sprites.unit
    assert {unit(f"magi/mage{x}.png") for x in ("", "-attack-3", "-ne", "+female", "+female-die2", "2", "_a")} == {
        "magi/mage"
    }
    assert unit("magi/white/mage.png") == "magi/mage" and unit("trolls/mage.png") == "trolls/mage"
    names = [f"{race}/{k}" for race in "ab" for k in range(50)]
    held = sprites.held_out(names, 0.12)
    assert [sum(x.startswith(race) for x in held) for race in "ab"] == [6, 6]
    assert sprites.held_out(reversed(names), 0.12) == held < sprites.held_out(names, 0.2)


def test_no_unit_is_on_both_sides(game, tmp_path):
    data = opened(game, tmp_path, flip=False, test_fraction=0.3)
    # Ten units of six files a race; of orcs one file more, and none of those that are no bodies.
    assert (len(data.train) + len(data.test), len(data.test)) == (121, 36)
    assert torch.bincount(data.test.labels).tolist() == [18, 18]
    assert torch.bincount(data.train.labels).tolist() == [42, 43]


def test_what_options_are_chosen_by_is_of_other_units_than_the_test(game, tmp_path):
    final = opened(game, tmp_path, flip=False, test_fraction=0.3)
    choice = opened(game, tmp_path, flip=False, test_fraction=0.3, validation=True)

    # So nothing of the final test is in either part.
    assert len(choice.train) + len(choice.test) == len(final.train)
    assert torch.bincount(choice.test.labels).tolist() == [12, 12]  # 0.3 of seven units: two, of six files each


def test_mirrored_copies_are_for_training(game, tmp_path):
    plain, flipped = opened(game, tmp_path, flip=False), opened(game, tmp_path)
    count = len(plain.train)
    assert len(flipped.train) == 2 * count and len(flipped.test) == len(plain.test)
    a, b = (flipped.train.__getitems__([k]).data for k in (5, count + 5))
    assert torch.equal(b["image"], a["image"].flip(3)) and torch.equal(b["mask"], a["mask"].flip(2))
    assert not torch.equal(b["mask"], a["mask"]) and torch.equal(a["label"], b["label"])


def test_terrain_is_a_function_of_the_number_and_not_shared(game, tmp_path):
    data = opened(game, tmp_path, 72, background="terrain")
    grounds = []
    for part in (data.train, data.test):
        images = levels(part.__getitems__(range(len(part))).data["image"])
        assert torch.equal(levels(part.__getitems__([3]).data["image"])[0], images[3])
        # The corners show the ground alone: the rows 36 and 35 of the hexagons above and below.
        assert (images[:, 1, 0, [0, -1]] == 72).all() and (images[:, 1, -1, [0, -1]] == 70).all()
        grounds.append(set(images[:, 0, 0, 0].tolist()))
    assert len(grounds[0]) == 8 and len(grounds[1]) == 2 and not grounds[0] & grounds[1]
    assert grounds[0] | grounds[1] == set(range(0, 100, 10))


def test_sprites_say_what_is_wrong(game, tmp_path):
    with pytest.raises(MmfastError, match=r"images/units does not exist.*wesnoth-1.16-data.*--data.root"):
        opened(tmp_path, tmp_path)
    with pytest.raises(MmfastError, match=r"size is 20.*16, 32"):
        opened(game, tmp_path, 20)
    with pytest.raises(MmfastError, match=r"label.classes is 1; this data has 2 \(elves, orcs\)"):
        opened(game, tmp_path, label=SimpleNamespace(classes=1))
    (tmp_path / "core/images/units/elves").mkdir(parents=True)
    with pytest.raises(MmfastError, match=r"team-colors.cfg cannot be read"):
        opened(tmp_path, tmp_path)
    (tmp_path / "core/team-colors.cfg").write_text("magenta=FF00FF\n")
    with pytest.raises(MmfastError, match=r"holds no sprites"):
        opened(tmp_path, tmp_path)
    (tmp_path / "core/images/units/elves/a.png").write_text("no picture")
    with pytest.raises(MmfastError, match=r"a.png cannot be read as a picture"):
        opened(tmp_path, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not Path(sprites.Spec().root).is_dir(), reason=f"apt-get install {sprites.PACKAGE}")
def test_the_real_sprites(tmp_path, monkeypatch):
    files = sprites._files(Path(sprites.Spec().root) / "core/images/units")
    units = {sprites.unit(file) for file in files}
    assert len(files) > 5700 and len({file.split("/")[0] for file in files}) == 21 and 200 < len(units) < 300
    monkeypatch.setattr(sprites, "_files", lambda folder: files[::4])  # the others take their time
    data = sprites.open(sprites.Spec(cache=str(tmp_path), flip=False), parts(16), "image")
    train, test = len(data.train), len(data.test)
    assert train + test > 1250 and 0.08 < test / (train + test) < 0.16
    masks = torch.cat([data.train.masks, data.test.masks])
    shares = torch.bincount(masks.flatten().int(), minlength=4) / masks.numel()
    assert shares.shape == (4,) and 0.6 < shares[0] < 0.8 and (shares[1:] > 0.02).all()
    # The sprites stand in the middle, so that the corners are ground.
    assert (masks[:, 0, 0] == 0).float().mean() > 0.9
