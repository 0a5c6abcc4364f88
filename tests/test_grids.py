"""The grids that training draws: which there are, what they show, and when they are drawn again."""

import numpy as np
import pytest
import torch
from PIL import Image
from test_evaluate import GIVENS, World, grids_module

from mmfast.grids import Gallery, sample_run
from mmfast.run import Run


class Wall:
    def __init__(self):
        self.shown = []

    def picture(self, name, picture, step):
        self.shown.append((name, picture, step))


def test_grids_in_every_direction(monkeypatch, tmp_path):
    """Each drawn from the first held-out examples, beside the truth, in a file of its own and on the board."""
    how = {"seed": 3, "sample__steps": 4, "sample__guidance_scale": 1.5}
    world = World(monkeypatch, count=2, evaluate__samples=9, **how)
    run, wall, grids = Run.start(tmp_path / "run", world.config), Wall(), []
    real = grids_module.sample_grid

    def grid(parts, drawn, title, given, beside):
        (truth,) = beside.values()
        grids.append((drawn, title, given, truth))
        assert {name: part is world.model.part(name) for name, part in parts.items()} == dict.fromkeys(parts, True)
        return real(parts, drawn, title, given, beside=beside)

    monkeypatch.setattr(grids_module, "sample_grid", grid)
    sample_run(Gallery(run, 70, wall), world.model, world.config, world.shown, quiet=True)
    names = ["joint" if not given else f"given-{given}" for given in GIVENS]
    order = ["", "image", "label", "mask", "vector", "hidden"]
    assert [(name, step) for name, _, step in wall.shown] == [(name, 70) for name in names]
    assert sorted(file.name for file in run.samples.iterdir()) == sorted(f"step-0000070-{name}.png" for name in names)
    hidden = next(given["hidden"] for _, given, _ in world.calls if "hidden" in given)
    for (given, (drawn, title, marked, truth)), (name, picture, _) in zip(
        zip(order, grids, strict=True), wall.shown, strict=True
    ):
        wanted = {**world.drawn[given]}
        if given == "hidden":
            wanted["image"] = torch.where(hidden[:, 1:] > 0, hidden[:, :1], wanted["image"])
        assert all(torch.equal(drawn[part], wanted[part]) for part in drawn) and marked == ([given] if given else [])
        told = f"given {given}: the rest generated" if given else "generated together, nothing given"
        steps = {"image": "1 step", "hidden": "2 steps"}.get(given, "4 steps")  # their given_steps
        assert title == f"{told}; step 70; seed 3, {steps}, guidance 1.5"
        beside = (
            {"image", "label", "mask", "vector"} - {given} if given else set()
        )  # hidden parts follow from the image
        assert truth.keys() == beside and all(torch.equal(x, world.truth[part][:2]) for part, x in truth.items())
        with Image.open(run.samples / f"step-0000070-{name}.png") as file:
            assert np.array_equal(np.asarray(file), np.asarray(picture))
    for count, given, how in world.calls:
        assert count == 2 and how == {"progress": False}
        for name in given.keys() - {"hidden"}:
            assert torch.equal(given[name], world.truth[name][:2])


@pytest.mark.slow
def test_grids_without_a_board_and_with_bars(monkeypatch, tmp_path):
    """Of an image alone there is one: it is not drawn given itself."""
    world = World(monkeypatch, count=2, evaluate__samples=9).alone()
    sample_run(Gallery(Run.start(tmp_path / "one", world.config), 3), world.model, world.config, world.shown)
    assert [(given, how) for _, given, how in world.calls] == [({}, {"progress": "samples, step 3"})]
    world = World(monkeypatch, count=2, evaluate__samples=9).alone("label")
    sample_run(Gallery(Run.start(tmp_path / "two", world.config), 3), world.model, world.config, world.shown)
    assert [list(given) for _, given, _ in world.calls] == [[], ["image"], ["label"]]
    world = World(monkeypatch, count=2, evaluate__samples=9)
    sample_run(Gallery(Run.start(tmp_path / "all", world.config), 3), world.model, world.config, world.shown)
    texts = [how["progress"] for _, _, how in world.calls]
    assert texts == ["samples, step 3", *(f"samples given {given}, step 3" for given in GIVENS[1:])]


def test_grids_that_are_there_are_drawn_again_only_where_that_is_asked_for(monkeypatch, tmp_path):
    world = World(monkeypatch, count=2, evaluate__samples=9)
    gallery = Gallery(Run.start(tmp_path / "run", world.config), 3)

    def drawn(again):
        world.calls.clear()
        sample_run(gallery, world.model, world.config, world.shown, quiet=True, again=again)
        return ["".join(given) for _, given, _ in world.calls]

    assert drawn(False) == [*GIVENS] and drawn(False) == [] and drawn(True) == [*GIVENS]
    gallery.file("given-mask").unlink()
    gallery.file("joint").unlink()
    assert drawn(False) == ["", "mask"]


def test_an_overview_is_of_what_was_drawn_over_what_is_real(monkeypatch, tmp_path):
    world, seen = World(monkeypatch, count=2, evaluate__samples=9).alone("label"), []

    def overview(x, real):
        seen.append((x, real))
        return Image.new("RGB", (4, 4), (len(seen), 0, 0))

    monkeypatch.setattr(world.model.part("label"), "overview", overview)
    gallery = Gallery(Run.start(tmp_path / "run", world.config), 3)
    sample_run(gallery, world.model, world.config, world.shown, quiet=True)
    for k, given in enumerate(("", "image")):  # not what is given, over itself
        x, real = seen[k]
        assert torch.equal(x, world.drawn[given]["label"]) and torch.equal(real, world.truth["label"][:2])
        file = gallery.file(f"given-{given}-label" if given else "joint-label", "scatter")
        with Image.open(file) as picture:
            assert picture.getpixel((0, 0)) == (k + 1, 0, 0)
    assert len(seen) == 2
