"""Data that has changed since a run began: what of it is said, and nothing is done without the user's permission."""

import hashlib
import itertools
import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from test_trainer import Known, data
from tiny import TINY, flags, tiny

from mmfast.cli import main
from mmfast.data import Data
from mmfast.data.base import InMemory
from mmfast.errors import MmfastError
from mmfast.files import load_tensors
from mmfast.run import Run
from mmfast.training import record
from mmfast.training.loop import fit
from mmfast.training.record import Record, changes, of_examples, of_files
from mmfast.training.validation import Validation

CONFIG = """
anchor: photo
data: {{kind: folder, root: {root}}}
modalities:
  photo: {{kind: image, channels: 1, size: 8}}
  label: {{kind: label, classes: 2}}
"""


def draw(file, k):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(k).integers(0, 256, (8, 8), dtype=np.uint8)).save(file)


@pytest.fixture
def folder(tmp_path):
    """Twelve photos with labels, and a run of two steps on them."""
    root = tmp_path / "data"
    for k in range(12):
        draw(root / "photo" / f"{k:02d}.png", k)
        (root / "label").mkdir(exist_ok=True)
        (root / "label" / f"{k:02d}.txt").write_text(str(k % 2))
    (root / "label" / "stray.txt").write_text("0")
    (tmp_path / "my.yaml").write_text(CONFIG.format(root=root))
    assert main(command(tmp_path, 2)) == 0
    return root


def command(tmp_path, steps, *more):
    pairs = [pair for pair in TINY if not pair[0].startswith("evaluate")]
    few = [("train.batch_size", "4"), ("train.steps", str(steps)), ("sample.steps", "1"), ("evaluate.samples", "0")]
    return [
        "train",
        str(tmp_path / "my.yaml"),
        "--out",
        str(tmp_path / "run"),
        "--quiet",
        *flags([*pairs, *few]),
        *more,
    ]


def kept(tmp_path):
    return json.loads((tmp_path / "run" / "data.json").read_text())


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_what_is_kept(folder, tmp_path):
    found = kept(tmp_path)
    assert sorted(found["files"]) == sorted(
        f"{name}/{k:02d}.{end}" for k in range(12) for name, end in (("photo", "png"), ("label", "txt"))
    )
    for name, (size, time, digest) in found["files"].items():
        content, about = (folder / name).read_bytes(), (folder / name).stat()
        assert (size, time) == (len(content), about.st_mtime_ns)
        assert digest == hashlib.sha256(content).hexdigest()[:32]
    assert found["allowed"] == []


def add(root):
    for name in ("new", "newer", "newest", "news"):
        draw(root / "photo" / f"{name}.png", 50)
        (root / "label" / f"{name}.txt").write_text("0")


def remove(root):
    (root / "photo" / "03.png").unlink()  # and its label belongs to nothing then


def alter(root):
    draw(root / "photo" / "05.png", 99)


def swap(root):
    """The same size, and the same time."""
    file = root / "label" / "04.txt"
    before = file.stat()
    file.write_text("1")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


CHANGES = {
    "added": (add, "8 files added (label/new.txt, label/newer.txt, label/newest.txt, ...)"),
    "removed": (remove, "2 files no longer used (label/03.txt, photo/03.png)"),
    "altered": (alter, "1 file altered (photo/05.png)"),
    "of one size": (swap, "1 file altered (label/04.txt)"),
}


@pytest.mark.parametrize(
    "change, words",
    [pytest.param(*x, id=name, marks=[pytest.mark.slow] * (name != "altered")) for name, x in CHANGES.items()],
)
def test_it_is_said_and_nothing_is_done_unless_it_is_allowed(folder, tmp_path, capsys, change, words):
    before = contents(tmp_path / "run")
    change(folder)
    capsys.readouterr()
    assert main(command(tmp_path, 3)) == 2
    assert capsys.readouterr().err == (
        f"mmfast: error: the data has changed since the run in --out {tmp_path}/run began: {words}. Nothing was done: "
        "restore it, choose another --out, or add --allow-changed-data to continue with the current data\n"
    )
    assert contents(tmp_path / "run") == before
    assert main(command(tmp_path, 3, "--allow-changed-data")) == 0
    assert f"going on with changed data: {words}\n" in capsys.readouterr().err
    assert kept(tmp_path)["allowed"] == [f"after step 2: {words}"]
    # From here on that is the data.
    assert main(command(tmp_path, 4)) == 0 and "data" not in capsys.readouterr().err
    assert kept(tmp_path)["allowed"] == [f"after step 2: {words}"]


def test_another_config_is_said_before_other_data(folder, tmp_path, capsys):
    add(folder)
    assert main(command(tmp_path, 3, "--train.learning_rate", "0.5")) == 2
    assert "another config (train.learning_rate" in capsys.readouterr().err


@pytest.mark.slow
def test_times_alone_change_nothing_and_what_is_as_it_was_is_not_read(folder, tmp_path, capsys, monkeypatch):
    read, real = [], record._digest
    monkeypatch.setattr(record, "_digest", lambda path, portion: read.append(path.name) or real(path, portion))
    assert main(command(tmp_path, 3)) == 0 and read == []
    os.utime(folder / "photo" / "07.png", (1, 1))
    assert main(command(tmp_path, 4)) == 0 and read == ["07.png"]
    assert main(command(tmp_path, 5)) == 0 and read == ["07.png"]  # its new time is kept
    shutil.move(folder, tmp_path / "elsewhere")
    shutil.copytree(tmp_path / "elsewhere", folder, copy_function=shutil.copyfile)  # with times of its own
    assert main(command(tmp_path, 6)) == 0 and len(read) == 25


@pytest.fixture(scope="module")
def one_step(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one_step") / "run"
    fit(tiny(train__steps=1), str(folder), data(), Known(), quiet=True)
    return folder


@pytest.mark.parametrize("junk", [b"", b"\xff", b"[" * 100_000, b"[]", b'{"files": {}}', b"half",
                                  b'{"portion": 1, "files": {"a": 3}, "counts": {}, "examples": {}, "allowed": []}'],
                         ids=range(7))  # fmt: skip
def test_a_record_that_is_damaged_is_said_and_made_anew(one_step, tmp_path, capsys, junk):
    shutil.copytree(one_step, tmp_path / "run")
    good = (tmp_path / "run" / "data.json").read_bytes()
    (tmp_path / "run" / "data.json").write_bytes(junk)
    fit(tiny(train__steps=1), str(tmp_path / "run"), data(), Known(), quiet=True)
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"mmfast: {tmp_path}/run/data.json cannot be read (") and said.endswith("this time")
    assert (tmp_path / "run" / "data.json").read_bytes() == good


def test_a_record_that_is_missing_is_made(one_step, tmp_path, capsys):
    """As of an earlier version."""
    shutil.copytree(one_step, tmp_path / "run")
    good = (tmp_path / "run" / "data.json").read_bytes()
    (tmp_path / "run" / "data.json").unlink()
    fit(tiny(train__steps=1), str(tmp_path / "run"), data(), Known(), quiet=True)
    assert (tmp_path / "run" / "data.json").read_bytes() == good and not capsys.readouterr().err


def test_data_that_is_in_no_files(tmp_path):
    """Half of its examples are altered, or one is missing; 32 of 50 are looked at."""
    fit(tiny(train__steps=1), str(tmp_path / "run"), data(), Known(), quiet=True)
    part = data().train
    other = {**part.tensors, "label": (part.tensors["label"] + (torch.arange(50) >= 25)) % 10}
    with pytest.raises(
        MmfastError, match=r"16 of 32 training examples looked at altered \(number 25, 26, 28, \.\.\.\)\. Nothing"
    ):
        fit(tiny(train__steps=2), str(tmp_path / "run"), Data(InMemory(other), part), Known(), quiet=True)
    less = InMemory({name: x[:-1] for name, x in part.tensors.items()})
    with pytest.raises(MmfastError, match=r"49 held-out examples instead of 50\. Nothing"):
        fit(tiny(train__steps=2), str(tmp_path / "run"), Data(part, less), Known(), quiet=True)
    fit(tiny(train__steps=2), str(tmp_path / "run"), Data(part, less), Known(), quiet=True, allow_changed_data=True)
    assert record.load(tmp_path / "run" / "data.json").allowed == ["after step 1: 49 held-out examples instead of 50"]


# --- records ------------------------------------------------------------------------------------------------------


def test_of_a_large_file_both_ends_count(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "IN_ALL", 0)
    monkeypatch.setattr(record, "OF_EACH", 100)
    file, seen = tmp_path / "x", []
    content = bytes(range(250))
    for at in (None, 0, 49, 50, 199, 200, 249):
        changed = bytearray(content)
        if at is not None:
            changed[at] ^= 1
        file.write_bytes(changed)
        seen.append(of_files({"x": file}).files["x"][2])
    assert seen[0] == hashlib.sha256(content[:50] + content[200:]).hexdigest()[:32]
    assert [digest == seen[0] for digest in seen] == [True, False, False, True, True, False, False]


def test_files_that_are_not_too_large_in_all_count_whole(tmp_path):
    """Less than 2 GiB in all; a file in the middle changes."""
    files = {name: tmp_path / name for name in "abc"}
    for file in files.values():
        file.write_bytes(bytes(30_000))
    before = of_files(files)
    assert before.portion == 30_000
    files["b"].write_bytes(bytes(15_000) + b"x" + bytes(14_999))
    after = of_files(files, before)
    assert after.files["b"][2] == hashlib.sha256(files["b"].read_bytes()).hexdigest()[:32]
    assert changes(before, after) == ["1 file altered (b)"]


def test_a_bar_is_shown_for_many_files_alone(tmp_path, monkeypatch, capsys):
    files = {name: tmp_path / name for name in "abc"}
    for file in files.values():
        file.write_bytes(b"x")
    for few, quiet, said in (
        (3, False, ""), (2, True, ""), (3, True, ""), (2, False, "looking at the data: 3 files\n"),
    ):  # fmt: skip
        monkeypatch.setattr(record, "FEW", few)
        of_files(files, quiet=quiet)
        assert capsys.readouterr().err == said


def test_the_bytes_that_count_are_those_of_the_record_before(tmp_path, monkeypatch):
    files = {name: tmp_path / name for name in "ab"}
    for file in files.values():
        file.write_bytes(bytes(300_000))
    monkeypatch.setattr(record, "IN_ALL", 100_000)
    before = of_files(files)
    assert before.portion == 50_000
    os.utime(files["a"], (1, 1))
    now = of_files({"a": files["a"]}, before)
    assert now.portion == 50_000 and changes(before, now) == ["1 file no longer used (b)"]


def test_a_record_is_read_as_it_was_written_and_odd_names_too(tmp_path):
    odd = tmp_path / os.fsdecode(b"caf\xe9 \n'\".png")
    odd.write_bytes(b"x")
    found = of_files({odd.name: odd, "gone": tmp_path / "gone"})
    assert [*found.files] == [odd.name] and Record.from_json(found.to_json()) == found


def test_what_is_missing_and_what_is_computed_does_not_count():
    from mmfast.data import Batch

    class Lacks(InMemory):
        def __getitems__(self, rows):
            return Batch(super().__getitems__(rows).data, {"x": torch.as_tensor(rows) % 2 == 0})

    def of(x, y):
        part = Lacks({"x": torch.tensor(x), "y": torch.tensor(y)})
        return of_examples(Data(part, part), ["x"])

    assert changes(of([1, 2, 3], [0, 0, 0]), of([1, 9, 3], [1, 1, 1])) == []
    assert changes(of([1, 2, 3], [0, 0, 0]), of([1, 2, 4], [0, 0, 0])) == [
        f"1 of 3 {part} examples looked at altered (number 2)" for part in ("training", "held-out")]  # fmt: skip


def test_an_example_is_its_names_types_shapes_and_numbers():
    """The same bytes as another thing are another example; so is one that is there, and one that is not."""
    from mmfast.data import Batch

    class One(InMemory):
        def __getitems__(self, rows):
            batch = super().__getitems__(rows)
            return Batch(batch.data, {"x": torch.tensor([self.there] * len(rows))})

    def of(x, y, there=True):
        part = One({"x": x, "y": y})
        part.there = there
        return of_examples(Data(part, part), ["x", "y"]).examples["train"]

    zeros, ones = torch.zeros(1, 4), torch.ones(1, 4)
    found = [
        of(zeros, ones), of(ones, zeros), of(zeros.int(), ones), of(zeros.reshape(1, 2, 2), ones),
        of(zeros, ones, there=False), of(zeros, zeros), of(zeros, torch.tensor([[1.0, 1, 1, 2]])),
    ]  # fmt: skip
    assert all(a != b for k, a in enumerate(found) for b in found[:k])
    assert of(ones, zeros, there=False) == of(zeros, zeros, there=False)  # what is missing may hold anything


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"portion": "1"}, "portion is a str"),
        ({"files": {"a": [1, 2]}}, "a file is [1, 2]"),
        ({"files": {"a": [1, 2.0, "x"]}}, "a file is [1, 2.0, 'x']"),
        ({"files": {"a": "abc"}}, "a file is 'abc'"),
        ({"more": 1}, "it should hold portion, files, counts, examples, allowed"),
    ],
)
def test_a_record_of_another_form_is_refused_with_the_reason(tmp_path, capsys, change, says):
    good = Record(10, {"a": [1, 2, "x"]})
    assert Record.from_json(good.to_json()) == good
    file = tmp_path / "data.json"
    file.write_text(json.dumps({**json.loads(good.to_json()), **change}))
    assert record.load(file) is None
    said = f"mmfast: {file} cannot be read ({says}), so changes of the data go unnoticed this time\n"
    assert capsys.readouterr().err == said


@pytest.mark.slow
def test_a_table_that_changed_keeps_the_statistics_that_were_learnt_by(tmp_path, capsys):
    """Rows that came move each column's mean and scale; the network's input must not move with them."""
    table = tmp_path / "t.csv"
    rows = [f"{k},{k * k % 7},{'ab'[k % 2]}" for k in range(40)]
    table.write_text("\n".join(["x,y,label", *rows]) + "\n")
    (tmp_path / "my.yaml").write_text(
        f"anchor: row\ndata: {{kind: table, source: {table}}}\nbackbone: {{kind: mlp, width: 8, blocks: 1}}\n"
        "modalities:\n  row: {kind: table}\n  label: {kind: label, classes: 2}\n"
    )
    words = ["--schedule.T", "10", "--evaluate.samples", "0", "--sample.steps", "1", "--train.decay", "constant"]
    train = ["train", str(tmp_path / "my.yaml"), "--out", str(tmp_path / "run"), "--quiet", *words]
    assert main([*train, "--train.steps", "2"]) == 0
    first = Run.open(tmp_path / "run").config().modalities["row"]
    table.write_text("\n".join(["x,y,label", *rows, *(f"{k},3,a" for k in range(1000, 1020))]) + "\n")
    capsys.readouterr()
    assert main([*train, "--train.steps", "3"]) == 2
    assert "the data has changed since the run" in capsys.readouterr().err
    assert main([*train, "--train.steps", "3", "--allow-changed-data"]) == 0
    again = Run.open(tmp_path / "run").config().modalities["row"]
    assert first.means and (again.means, again.scales) == (first.means, first.scales)
    assert main([*train, "--train.steps", "3", "--modalities.row.means", "0,0", "--allow-changed-data"]) == 2
    assert "modalities.row.means" in capsys.readouterr().err  # but not those that somebody says
    assert main([*train[:3], str(tmp_path / "new"), *train[4:], "--train.steps", "1"]) == 0
    assert Run.open(tmp_path / "new").config().modalities["row"].means[0] > first.means[0] + 100


def test_figures_and_best_weights_of_other_data_are_set_aside(folder, tmp_path, capsys, monkeypatch):
    """A later validation is then the best, however large, and the run is evaluated anew."""
    run, losses = tmp_path / "run", itertools.count(1)
    monkeypatch.setattr(Validation, "__call__", lambda self, model: {"loss": float(next(losses))})
    measured = ("--evaluate.samples", "2", "--train.validate_every", "1")
    assert main(command(tmp_path, 3, *measured)) == 0
    figures, best = json.loads((run / "metrics.json").read_text()), (run / "ema.best.safetensors").read_bytes()
    for k in range(12):
        draw(folder / "photo" / f"{k:02d}.png", 100 + k)
    capsys.readouterr()
    # Of the same number of steps: only the figures are made again.
    assert main(command(tmp_path, 3, *measured, "--allow-changed-data")) == 0
    assert json.loads((run / "metrics.data-0.json").read_text()) == figures
    assert json.loads((run / "metrics.json").read_text()) != figures
    assert (run / "ema.best.data-0.safetensors").read_bytes() == best
    assert not (run / "ema.best.safetensors").exists()
    kept_before = load_tensors(run / "ema.best.data-0.safetensors")[1]["step"]
    # In the steps that follow, the best is the best of these: the first, although the loss before may have been less.
    assert main(command(tmp_path, 4, *measured)) == 0
    assert load_tensors(run / "ema.best.safetensors")[1]["step"] == 4 and kept_before <= 3
    assert json.loads((run / "metrics.data-0.json").read_text()) == figures
    # A second change keeps its own.
    draw(folder / "photo" / "00.png", 200)
    assert main(command(tmp_path, 5, *measured, "--allow-changed-data")) == 0
    assert (run / "ema.best.data-1.safetensors").exists() and (run / "metrics.step-0000004.json").exists()
    assert load_tensors(run / "ema.best.safetensors")[1]["step"] == 5
