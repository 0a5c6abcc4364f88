"""What a review of sampling found: work lost at its end, names that guide nothing, and values dropped in silence."""

import errno
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from small_run import make
from tiny import tiny

from mmfast import MmfastError, load, sweep
from mmfast import config as configs
from mmfast.build import build_data, build_model
from mmfast.cli import main
from mmfast.files import save_tensors
from mmfast.from_run import take_weights
from mmfast.generate import generate

QUIET = ["--device", "cpu", "--quiet"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("review") / "run"
    make(folder)
    return folder


def test_a_run_without_its_folder_of_samples(made, tmp_path):
    """As someone copies it who only samples: the config and the weights."""
    for name in ("config.yaml", "ema.safetensors"):
        (tmp_path / "run").mkdir(exist_ok=True)
        shutil.copy(made / name, tmp_path / "run")
    npz = tmp_path / "x.npz"
    assert main(["sample", str(tmp_path / "run"), "--n", "1", "--npz", str(npz), *QUIET]) == 0
    assert npz.exists() and len([*(tmp_path / "run/samples").iterdir()]) == 1


@pytest.mark.parametrize("command", ["sample", "sweep"])
def test_a_place_that_takes_no_files_is_named_before_any_work(made, tmp_path, capsys, monkeypatch, command):
    run = tmp_path / "run"
    shutil.copytree(made, run)
    name, work = {"sample": ("samples", "mmfast.loaded.generate"), "sweep": ("sweeps", "mmfast.sweep.sweep")}[command]
    shutil.rmtree(run / name, ignore_errors=True)
    (run / name).write_text("no folder")
    monkeypatch.setattr(work, lambda *args, **how: pytest.fail("it worked first"))
    words = [command, str(run), *QUIET, *(["--over", "steps=1"] if command == "sweep" else [])]
    assert main(words) == 2
    assert f"{run / name} cannot be written to: File exists; choose another place" in capsys.readouterr().err


def test_a_folder_that_takes_no_file_is_named(made, tmp_path, capsys, monkeypatch):
    """As on a mount that can only be read: the folder exists, and each file in it fails."""
    (tmp_path / "run").mkdir()
    for name in ("config.yaml", "ema.safetensors"):
        shutil.copy(made / name, tmp_path / "run")

    def read_only(**how):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("mmfast.cli.shared.tempfile.TemporaryFile", read_only)
    assert main(["sample", str(tmp_path / "run"), *QUIET]) == 2
    wrong = f"{tmp_path / 'run' / 'samples'} cannot be written to: Read-only file system; choose another place"
    assert wrong in capsys.readouterr().err


def test_a_place_to_save_is_checked_before_any_work(made, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("mmfast.loaded.generate", lambda *args, **how: pytest.fail("it worked first"))
    assert main(["sample", str(made), "--save", str(tmp_path / "file/x/y"), *QUIET]) == 2
    assert f"and {tmp_path / 'file'} is not a folder; choose another place" in capsys.readouterr().err


def test_two_sweeps_at_once_have_a_folder_each(made):
    def swept(values):
        return main(["sweep", str(made), "--over", f"spacing={values}", "--samples", "8", *QUIET])

    with ThreadPoolExecutor(2) as pool:
        assert [*pool.map(swept, ["1,2", "3,4"])] == [0, 0]
    found = [json.loads(file.read_text()) for file in sorted(made.glob("sweeps/*/sweep.json"))]
    assert sorted([point["options"]["spacing"] for point in points] for points in found) == [["1", "2"], ["3", "4"]]


def test_a_folder_that_fills_during_the_first_point_is_left_alone(made, tmp_path, monkeypatch, capsys):
    place, draw = tmp_path / "out", sweep.sweep

    def slow(*args):
        place.mkdir()
        (place / "theirs").write_text("")
        return draw(*args)

    monkeypatch.setattr("mmfast.sweep.sweep", slow)
    assert main(["sweep", str(made), "--over", "steps=1", "--samples", "8", "--out", str(place), *QUIET]) == 2
    assert "which already exists; nothing is overwritten" in capsys.readouterr().err
    assert [file.name for file in place.iterdir()] == ["theirs"]


def test_a_sweep_refuses_what_the_model_cannot_do_before_it_draws(monkeypatch):
    settings = tiny(evaluate__samples=8)
    model, data = build_model(settings), build_data(settings)
    monkeypatch.setattr("mmfast.sweep.generate", lambda *args, **how: pytest.fail("it drew"))
    most = settings.schedule.T
    with pytest.raises(MmfastError, match=rf"over\['steps'\] has {most + 1}; it should be at most {most}"):
        sweep.sweep(model, settings, data, {"steps": ["1", str(most + 1)]})
    untraced = tiny(evaluate__samples=8, modalities__label__weight="{kind: none}")
    with pytest.raises(MmfastError, match=r"sample\.offset.*label"):
        sweep.sweep(build_model(untraced), untraced, data, {"offset": ["{}", "{label: 0.2}"]})


def test_what_a_sweep_draws_first_may_be_guided():
    settings = tiny(evaluate__samples=8)
    over = sweep.options_of(["first=[],[label,mask],[mask]", "guidance_scale=1,2"])
    assert over == {"first": ["[]", "[label,mask]", "[mask]"], "guidance_scale": ["1", "2"]}
    points = sweep.sweep(build_model(settings), settings, build_data(settings), over, progress=False)
    assert len(points) == 6
    assert sweep.options_of(["guidance_scale={label: 2, mask: 1},3"]) == {
        "guidance_scale": ["{label: 2, mask: 1}", "3"]
    }


def test_the_report_of_a_check_needs_no_place_for_its_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mmfast.cli.check.write_picture", refuse)
    assert main(["check", "digits", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "1,797 examples" in out and "no contact sheet: nowhere to write" in out
    assert main(["check", "digits", "--quiet", "--sheet", "x.png"]) == 2
    found = capsys.readouterr()
    assert "1,797 examples" in found.out and "nowhere to write" in found.err


def refuse(*_):
    raise MmfastError("nowhere to write; choose another place")


# --- what guides, and what is known ---


def test_what_is_given_in_part_guides_nothing():
    """The config's scale of its name is passed over; drawn in a turn of its own, it guides the next turn."""
    settings = tiny(sample__guidance_scale="{mask: 2, label: 1.5}", sample__steps=2)
    plain = tiny(sample__steps=2)
    model = build_model(settings).eval()
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():  # some of them start at zero
            p.add_(0.05 * torch.randn(p.shape, generator=g))
    part = model.part("mask")
    mask = part.blank(part.spec)[None]
    there = torch.zeros(mask.shape, dtype=torch.bool)
    there[..., :4, :] = True
    how = {"given": {"mask": mask}, "known": {"mask": there}}
    a, b = generate(model, settings, 3, **how), generate(model, plain, 3, **how)
    assert all(torch.equal(a[name], b[name]) for name in model.parts)
    first = {**how, "first": ["mask"]}
    a, b = generate(model, plain, 3, **first, guidance_scale={"mask": 2}), generate(model, plain, 3, **first)
    assert torch.equal(a["mask"], b["mask"]) and not torch.equal(a["image"], b["image"])


@pytest.mark.parametrize("ids", [[0, 1, 2], torch.tensor(3), torch.tensor([0.0, 1, 2])])
def test_ids_are_checked_before_a_label_comes_from_its_prior(ids):
    settings = tiny(modalities__label__class_counts=str([1] * 10))
    with pytest.raises(MmfastError, match=r"sample_ids is no int64 tensor \[3\]"):
        generate(build_model(settings), settings, 3, first=["label"], sample_ids=ids)


VECTOR = {"kind": "embedding", "dim": 64, "weight": {"kind": "carried"}, "layout": "grid"}


def with_vector(**change):
    modalities = {"image": {"kind": "image", "channels": 1, "size": 8}, "vector": {**VECTOR, **change}}
    backbone = {"kind": "unet", "channels": 16, "multipliers": [1, 2], "blocks": 1, "attention": [], "norm": "layer"}
    return configs.from_plain({"modalities": modalities, "backbone": backbone, "schedule": {"T": 20}}, "x")


@pytest.mark.parametrize(
    ("change", "fresh"), [({}, False), ({"layout": "channels"}, True), ({"weight": {"kind": "bridge"}}, True)]
)
def test_channels_that_mean_something_else_start_at_zero(tmp_path, change, fresh):
    old, g = build_model(with_vector()), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in old.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=g))
    (tmp_path / "config.yaml").write_text(configs.to_yaml(with_vector()))
    save_tensors(tmp_path / "ema.safetensors", old.state_dict(), {})
    model = build_model(with_vector(**change)).eval()
    take_weights(model, with_vector(**change), tmp_path)
    times = torch.full((4, 2), 10)
    z = torch.randn(4, model.channels, 8, 8, generator=g)
    other = torch.cat((z[:, :1], torch.randn(z[:, 1:].shape, generator=g)), 1)
    with torch.no_grad():
        a, b = (model(x, times, {}).anchor for x in (z, other))
    assert torch.equal(a, b) == fresh


# --- tables ---


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    lines = "\n".join(f"{k % 7},{k % 5},{k % 3}" for k in range(40))
    (folder / "x.csv").write_text("a,b,c\n" + lines + "\n")
    assert main(["init", str(folder / "x.csv"), "--out", str(folder / "x.yaml"), "--quiet"]) == 0
    words = ["train", str(folder / "x.yaml"), "--out", str(folder / "run"), "--train.steps", "2", "--quiet"]
    assert main(words) == 0
    return load(folder / "run", "cpu")


def test_known_columns_need_values(rows):
    (name,) = rows.model.parts
    with pytest.raises(MmfastError, match="has a part whose value is not given; give it, or leave it out"):
        rows.sample(2, given={name: "a=1"}, known={name: "b"})
    with pytest.raises(MmfastError, match="has no column; give a value for some of a, b, c"):
        rows.sample(2, given={name: {}})
    with pytest.raises(MmfastError, match="has column 'a' twice; give one value for it"):
        rows.sample(2, given={name: "a=1,a=2"})
    drawn = rows.sample(2, given={name: "a=1,b=2"}, known={name: "a"}, steps=2)
    assert drawn.data[name][:, 0].tolist() == pytest.approx([1, 1])
