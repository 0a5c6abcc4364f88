"""Paths in a config: relative to its file, on the command line to the current folder, and absolute in a run."""

import json
import os
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny import TINY, flags

import mmfast
from mmfast import config as configs
from mmfast import trust
from mmfast.build import build_data
from mmfast.cli import main
from mmfast.errors import MmfastError
from mmfast.options import paths
from mmfast.run import Run

FEW = [*TINY, ("train.batch_size", "4"), ("sample.steps", "1")]
CONFIG = """
data: {kind: folder, root: pictures, cache: kept}
modalities:
  image: {kind: image, channels: 1, size: 8}
schedule: {T: 4}
evaluate: {features_weights: nets/vgg.pth}
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A config beside its data, and another current folder."""
    root = tmp_path / "project"
    (root / "pictures/image").mkdir(parents=True)
    for k in range(12):
        pixels = np.random.default_rng(k).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"pictures/image/{k:02d}.png")
    (root / "my.yaml").write_text(CONFIG.replace(", cache: kept", ""))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(trust, "_allowed", set())
    return root


def root_of(source, *overrides):
    return configs.load(str(source), overrides).data.root


def train(config, run, steps, *more):
    return main(["train", str(config), "--out", str(run), "--quiet", *flags(FEW), "--train.steps", str(steps), *more])


def test_a_file_means_the_same_from_everywhere(project, monkeypatch):
    wanted = str(project / "pictures")
    for folder in ("elsewhere", "project", "project/pictures"):
        monkeypatch.chdir(project.parent / folder)
        for source in (os.path.relpath(project / "my.yaml"), project / "my.yaml"):
            found = configs.load(str(source))
            assert found.data.root == wanted
            assert found.evaluate.features_weights == str(project / "nets/vgg.pth")
    # So does a link to it, and a way to it through a linked folder.
    (project.parent / "elsewhere/link.yaml").symlink_to(project / "my.yaml")
    (project.parent / "linked").symlink_to(project)
    assert root_of(project.parent / "elsewhere/link.yaml") == wanted
    assert root_of(project.parent / "linked/my.yaml") == wanted


def test_what_the_command_line_says_is_relative_to_the_current_folder(project):
    here, file = str(project.parent / "elsewhere"), project / "my.yaml"
    assert root_of(file, ("data.root", "pictures")) == f"{here}/pictures"
    assert root_of(file, ("data", "{root: pictures}")) == f"{here}/pictures"
    assert root_of(file, ("data", "{kind: folder, root: pictures}")) == f"{here}/pictures"
    assert root_of(file, ("data.root", "x"), ("data", "{kind: folder, root: pictures}")) == f"{here}/pictures"
    # What it does not say is still the file's.
    assert root_of(file, ("data", "{flip: true}"), ("data.kind", "folder")) == str(project / "pictures")
    # A preset has no file.
    assert root_of("image-mask", ("data.root", "pictures")) == f"{here}/pictures"
    assert root_of("image-mask") == "/usr/share/games/wesnoth/1.16/data"
    assert configs.from_plain(yaml.safe_load(CONFIG), "x").data.root == f"{here}/pictures"


def test_forms_of_a_path(project):
    def written(root):
        (project / "forms.yaml").write_text(CONFIG.replace("pictures, cache: kept", json.dumps(root)))
        return root_of(project / "forms.yaml")

    (project / "deep").symlink_to(project / "pictures/image")
    cases = {"./pictures/": "pictures", "a/../pictures": "pictures", "pictures//image": "pictures/image", "~": "~"}
    for text, wanted in {**cases, "..": "..", "../x": "../x", ".": ""}.items():
        assert written(text) == os.path.normpath(project / wanted), text
    assert written("/data/x") == "/data/x" and written("") == ""
    assert written("deep/..") == str(project / "pictures")  # as the system reads it, and not as the text looks
    assert written("a:b") == str(project / "a:b")
    with pytest.raises(MmfastError, match=r"^data.root is 'a\\x00b', which is not a path: .*embedded null \w+.*$"):
        written("a\0b")


def test_a_current_folder_that_is_gone(project, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert root_of(project / "my.yaml") == str(project / "pictures")
    with pytest.raises(MmfastError, match=r"^data.root is 'x', which is not a path: No such file or directory$"):
        root_of(project / "my.yaml", ("data.root", "x"))


# Every option of a text that is the name of a file or a folder. Those of `names` are something else too.
PATHS = {
    "data": {
        "folder": ["root", "cache"], "sprites": ["root", "cache"], "fashion": ["root", "cache"],
        "torchvision": ["root", "cache"], "huggingface": ["path", "cache"], "table": ["source"], "digits": [],
    },
    "names": {"huggingface": ("path", "squad"), "table": ("source", "wine")},
}  # fmt: skip


@pytest.mark.parametrize("kind", PATHS["data"])
def test_every_option_that_is_a_path(kind, project):
    """By the declarations: a new option of a data set that is a path is to be said here."""
    spec = configs.data.kind(kind).Spec()
    assert [name for _, _, name, _ in paths(spec, "data.")] == PATHS["data"][kind]
    for name in PATHS["data"][kind]:
        text = "./some.csv" if name == "source" else "./some"
        plain = {"data": {"kind": kind, name: text}, "modalities": {"image": {"kind": "image"}}}
        found = configs.from_plain(plain, "x", folder=str(project))
        assert getattr(found.data, name) == str(project / text[2:])
    if kind in PATHS["names"]:
        name, text = PATHS["names"][kind]
        plain["data"] = {"kind": kind, name: text}
        assert getattr(configs.from_plain(plain, "x", folder=str(project)).data, name) == text


def test_a_name_on_the_hub_that_is_a_folder_beside_the_config_is_that_folder(project):
    plain = {"data": {"kind": "huggingface", "path": "mine/set"}, "modalities": {"image": {"kind": "image"}}}
    assert configs.from_plain(plain, "x", folder=str(project)).data.path == "mine/set"
    (project / "mine/set").mkdir(parents=True)
    assert configs.from_plain(plain, "x", folder=str(project)).data.path == str(project / "mine/set")


def test_other_paths_of_a_config(project):
    config = configs.load("digits")
    assert [key for key, *_ in paths(config, "")] == ["evaluate.features_weights", "evaluate.lpips_weights"]
    image = config.modalities["image"]
    assert [key for key, *_ in paths(image, "")] == ["autoencoder.network"]
    plain = {"modalities": {"image": {"kind": "image", "autoencoder": {"network": "nets/vae"}}}}
    found = configs.from_plain(plain, "x", folder=str(project))
    assert found.modalities["image"].autoencoder.network == str(project / "nets/vae")
    plain["modalities"]["image"]["autoencoder"]["network"] = "my.module:vae"
    found = configs.from_plain(plain, "x", folder=str(project))
    assert found.modalities["image"].autoencoder.network == "my.module:vae"


def test_a_path_with_a_colon_names_no_code(project):
    trust.check_code("x", str(project / "a:b"))
    with pytest.raises(MmfastError, match="code that a config names"):
        trust.check_code("x", "a:b")


def test_a_cache_is_permitted_by_the_path_that_is_said(project, tmp_path):
    file = project / "own.yaml"
    file.write_text(CONFIG)
    for _ in range(2):
        with pytest.raises(MmfastError, match=rf"add --data\.cache {project}/kept once"):
            configs.load(str(file))
        # Another folder of that name is said; it permits none but itself.
        assert configs.load(str(file), [("data.cache", "kept")]).data.cache == str(tmp_path / "elsewhere/kept")
    for _ in range(2):
        assert configs.load(str(file), [("data.cache", "../project/kept")]).data.cache == str(project / "kept")
    assert configs.load(str(file)).data.cache == str(project / "kept")


@pytest.mark.slow
def test_a_run_works_from_everywhere(project, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    assert train(project / "my.yaml", run, 2) == 0
    text = (run / "config.yaml").read_text()
    assert yaml.safe_load(text)["data"]["root"] == str(project / "pictures")
    monkeypatch.chdir("/")
    assert len(mmfast.load(run).data.train) + len(mmfast.load(run).data.test) == 12
    assert main(["eval", str(run), "--samples", "2", "--device", "cpu", "--quiet"]) == 2  # its weights are not there
    assert str(project / "nets/vgg.pth") in capsys.readouterr().err
    assert main(["sample", str(run), "--n", "1", "--device", "cpu", "--quiet"]) == 0
    # The same data by another form of its path is the same config, which goes on without a word of it.
    (tmp_path / "linked").symlink_to(project)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    for steps, more in ((2, []), (3, ["--data.root", "linked/pictures"]), (4, [])):
        assert train(project / "my.yaml", run, steps, *more) == 0
        assert "data.root" not in capsys.readouterr().err
    assert (run / "config.yaml").read_text() == text.replace("steps: 2", "steps: 4", 1)


def earlier(run, root):
    """The run as an earlier version left it: the path as it was said."""
    file = run / "config.yaml"
    raw = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**raw, "data": {**raw["data"], "root": root}}))


def test_a_run_of_an_earlier_version(project, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    assert train(project / "my.yaml", run, 2) == 0
    earlier(run, "pictures")
    with pytest.raises(
        MmfastError, match=rf"data.root is 'pictures', no folder in {tmp_path}/elsewhere, the current one"
    ):
        build_data(Run.open(run).config())
    assert main(["sample", str(run), "--n", "1", "--device", "cpu", "--quiet"]) == 0  # which needs no data
    monkeypatch.chdir(project)
    assert len(build_data(Run.open(run).config()).train) > 0
    capsys.readouterr()
    assert train("my.yaml", run, 2) == 0
    assert "data.root" not in capsys.readouterr().err
    monkeypatch.chdir("/")
    assert len(build_data(Run.open(run).config()).train) > 0  # its path is absolute now


@pytest.mark.slow
def test_data_that_has_moved(project, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(project / "my.yaml", run, 2) == 0
    shutil.move(project / "pictures", tmp_path / "moved")
    assert train(project / "my.yaml", run, 3) == 2
    assert f"data.root is '{project}/pictures', no folder; it should be one" in capsys.readouterr().err
    assert train(project / "my.yaml", run, 3, "--data.root", "../moved") == 0
    assert f"resuming with data.root '{project}/pictures' -> '{tmp_path}/moved'" in capsys.readouterr().err
    assert Run.open(run).config().data.root == str(tmp_path / "moved")
    # What lies there is compared as ever.
    (tmp_path / "moved/image/03.png").unlink()
    (tmp_path / "moved").rename(tmp_path / "again")
    before = (run / "config.yaml").read_bytes()
    assert train(project / "my.yaml", run, 4, "--data.root", "../again") == 2
    assert (
        "1 file no longer used (image/03.png)" in capsys.readouterr().err
        and (run / "config.yaml").read_bytes() == before
    )
    # Without a record of it nothing tells whether it is the same.
    (run / "data.json").unlink()
    assert train(project / "my.yaml", run, 4, "--data.root", "../again") == 2
    assert f"another config (data.root '{tmp_path}/moved' -> '{tmp_path}/again')" in capsys.readouterr().err


def test_init_writes_a_path_that_is_right_where_the_config_lies(project, tmp_path, monkeypatch):
    monkeypatch.setattr("mmfast.propose.step_time", lambda config: 0.5)
    for data, out, root in (
        ("../project/pictures", project / "a.yaml", "pictures"),
        ("../project/pictures", project / "pictures/b.yaml", "."),
        ("../project/pictures", tmp_path / "elsewhere/c.yaml", str(project / "pictures")),
    ):
        assert main(["init", data, "--out", str(out), "--quiet"]) == 0
        assert yaml.safe_load(out.read_text())["data"]["root"] == root
        assert root_of(out) == str(project / "pictures")
    assert main(["check", str(project / "a.yaml"), "--sheet", str(tmp_path / "sheet.png"), "--quiet"]) == 0
