"""Links in a data folder: followed within it, and out of it with permission alone; none is walked for ever."""

import os

import numpy as np
import pytest
from PIL import Image

from mmfast import modalities
from mmfast.cli import main
from mmfast.data import folder
from mmfast.data.found import find, walk
from mmfast.errors import MmfastError

SIZE = 4


def write(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((SIZE, SIZE, 3), len(file.stem), np.uint8)).save(file)


@pytest.fixture
def root(tmp_path):
    for name in ("ape/0", "ape/1", "cow/2", "cow/3"):
        write(tmp_path / "data" / "image" / f"{name}.png")
    for name in ("ox/4", "ox/5"):
        write(tmp_path / "elsewhere" / f"{name}.png")
    return tmp_path / "data"


def stems(root, **options):
    specs = {"image": modalities.kind("image").Spec(channels=3, size=SIZE)}
    data = folder.open(folder.Spec(root=str(root), **options), specs, "image")
    return {*data.train.stems, *data.test.stems}


def test_links_within_the_folder_are_followed_but_not_in_a_circle(root, tmp_path):
    (root / "image" / "dog").symlink_to("cow", target_is_directory=True)  # the same pictures again
    (root / "image" / "ape" / "again").symlink_to(root / "image", target_is_directory=True)
    (root / "image" / "ape" / "9.png").symlink_to("0.png")
    (tmp_path / "link").symlink_to(root, target_is_directory=True)
    expected = {"ape/0", "ape/1", "ape/9", "cow/2", "cow/3", "dog/2", "dog/3"}
    assert stems(root) == stems(tmp_path / "link") == expected


def test_a_folder_s_link_that_leads_out_needs_the_users_word(root, tmp_path):
    target = tmp_path / "elsewhere" / "ox"
    (root / "image" / "7.png").symlink_to(target / "4.png")  # one to a file is that file
    assert stems(root) == {"ape/0", "ape/1", "cow/2", "cow/3", "7"}
    (root / "image" / "ox").symlink_to(target)
    with pytest.raises(MmfastError) as found:
        stems(root)
    assert f"{root / 'image/ox'} is a link out of data.root, to {target.resolve()}; " in str(found.value)
    assert "--data.outside true" in str(found.value)
    assert stems(root, outside=True) == {"ape/0", "ape/1", "cow/2", "cow/3", "7", "ox/4", "ox/5"}


def test_a_modality_s_folder_may_lead_out_no_more_than_others(root, tmp_path):
    (root / "image").rename(tmp_path / "elsewhere" / "image")
    (root / "image").symlink_to(tmp_path / "elsewhere" / "image")
    with pytest.raises(MmfastError, match=r"data/image is a link out of data\.root"):
        stems(root)
    assert len(stems(root, outside=True)) == 4


def test_a_link_to_the_root_of_all_is_not_walked(root, monkeypatch):
    (root / "image" / "all").symlink_to("/")
    (root / "image" / "home").symlink_to(os.path.expanduser("~") if os.path.expanduser("~") != "/" else "/usr")
    seen, scan = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: seen.append(str(path)) or scan(path))
    with pytest.raises(MmfastError, match=r"is a link out of data\.root.*\(and 1 more\)"):
        stems(root)
    # Python 3.13's Path.glob scans the root, too.
    assert {*seen} - {str(root)} == {str(root / "image"), str(root / "image" / "ape"), str(root / "image" / "cow")}


def test_links_between_folders_are_not_walked_in_every_order(tmp_path, monkeypatch):
    monkeypatch.setattr("mmfast.data.found.MOST_WAYS", 20)
    names = "abcdefghij"  # ten, which have ten million ways through them
    for name in names:
        (tmp_path / name).mkdir()
    for name in names:
        for other in set(names) - {name}:
            (tmp_path / name / other).symlink_to(tmp_path / other)
    found = find(tmp_path, (".png",))
    assert not found.paths and len(found.problems) == 1
    assert f"more than 20 paths that lead to {tmp_path}/" in found.problems[0]
    assert [*walk(tmp_path)] == []


def test_a_folder_that_cannot_be_looked_at_is_a_problem(root, monkeypatch):
    scan = os.scandir

    def refused(path):
        if str(path).endswith("cow"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refused)  # the tests may run as root, whom nothing is refused
    with pytest.raises(MmfastError, match=r"image/cow cannot be listed: Permission denied"):
        stems(root)


def test_check_and_init_take_the_word(root, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (root / "image" / "ox").symlink_to(tmp_path / "elsewhere" / "ox")
    assert main(["check", str(root), "--quiet"]) == 2
    assert "image/ox is a link out of data.root" in capsys.readouterr().out
    assert main(["check", str(root), "--quiet", "--data.outside", "true"]) == 0
    assert "6 examples" in capsys.readouterr().out
    (tmp_path / "elsewhere" / "mask").mkdir()
    (root / "mask").symlink_to(tmp_path / "elsewhere" / "mask")
    for command in ("check", "init"):
        assert main([command, str(root)]) == 2
        assert "data/mask is a link out of data.root" in capsys.readouterr().err
    monkeypatch.setattr("mmfast.propose.step_time", lambda config: 1.0)
    assert main(["init", str(root), "--outside", "--quiet"]) == 0
    assert "outside: true" in (tmp_path / "my.yaml").read_text()
