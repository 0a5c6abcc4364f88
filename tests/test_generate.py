"""Drawing as a config says: together, or one modality after another, each given those before it."""

import dataclasses

import pytest
import torch
from scipy import stats
from test_sampling import MEANS, SPREAD, Oracle, labels, normal

from mmfast import MmfastError, config
from mmfast.build import build_model
from mmfast.cli import main
from mmfast.generate import generate, how_drawn, settings, title
from mmfast.ranks import ALONE, Ranks
from mmfast.sample import sample, sample_checked
from mmfast.training import train

SMALL = [("backbone", "{kind: mlp, width: 32, blocks: 1, features: 4}"), ("sample.steps", "3")]


@pytest.fixture(scope="module")
def small():
    found = config.load("digits", SMALL)
    model = build_model(found).eval()
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():  # some of them start at zero
            p.add_(0.05 * torch.randn(p.shape, generator=g))
    return model, found


@pytest.mark.slow
@pytest.mark.parametrize("first", [["label"], ["image"], ["label", "image"]])
def test_one_after_another_has_the_joint_distribution(first):
    """p(x) p(y | x) = p(x, y): labels come equally often, and z_0 is normal around its label's mean."""
    usual = config.load("digits", [("schedule.T", "1000"), ("sample.clamp", "null"), ("sample.batch_size", "3000")])
    result = generate(Oracle(), usual, 3000, first=first, steps=100, sampler="ddpm", seed=1, precision="fp32")
    assert stats.chisquare(labels(result["label"])).pvalue > 1e-4
    for k in range(3):
        normal(result["image"][result["label"] == k], float(MEANS[k]), SPREAD, bias=0.03)


def test_eta_is_for_the_samplers_that_take_one(small):
    """The config's is left out for others; one that is asked for is not."""
    model, usual = small
    pairs = [*SMALL, ("sample.sampler", "ddim"), ("sample.eta", "0.5")]
    chosen = config.load("digits", pairs)
    a, b = generate(model, chosen, 5, sampler="heun", steps=3), generate(model, usual, 5, sampler="heun", steps=3)
    assert all(torch.equal(a[name], b[name]) for name in model.parts)
    a, b = (generate(model, c, 5, sampler="ddim", steps=3) for c in (chosen, usual))
    assert not torch.equal(a["image"], b["image"])
    with pytest.raises(MmfastError, match=r"eta is 0\.5, and heun takes none"):
        generate(model, usual, 5, sampler="heun", steps=3, eta=0.5)


ENCODER = [("backbone", "{kind: dit, width: 16, blocks: 2, heads: 2, features: 8}"), ("sample.steps", "2")]
READ_ALONE = {
    "both off the encoder": (True, {}),
    "no pass without noise": (False, {"train.clean_pass": 0}),
    "an image that is also given elsewhere": (False, {"modalities.image.given_probability": 0.1}),
    "so by the usual share": (False, {"modalities.image.given_probability": "null"}),
    "never, by the usual share": (
        True,
        {
            "modalities.image.given_probability": "null",
            "train.given_probability": 0,
            "modalities.mask.given_probability": 0.2,
        },
    ),
    "a label off the decoder": (False, {"modalities.label.reads": "decoder"}),
}


@pytest.mark.parametrize(("alone", "change"), READ_ALONE.values(), ids=READ_ALONE)
def test_an_image_that_was_only_ever_read_alone_is(monkeypatch, alone, change):
    """Given an image and a mask, only the image is told, if no example showed the network both."""
    usual = {"train.clean_pass": 1, "modalities.mask.reads": "encoder", "modalities.image.given_probability": 0}
    chosen = config.load("digits", [*ENCODER, *((key, str(x)) for key, x in {**usual, **change}.items())])
    model, told = build_model(chosen).eval(), []

    def spy(model, count, given, *rest):
        told.append([*given])
        return sample_checked(model, count, given, *rest)

    monkeypatch.setattr("mmfast.generate.sample_checked", spy)
    image, mask = torch.rand(4, 1, 8, 8) * 2 - 1, torch.randint(0, 2, (1, 8, 8))
    drawn = generate(model, chosen, None, {"mask": mask, "image": image}, guidance_scale={"mask": 2, "image": 3})
    assert sorted(told.pop()) == (["image"] if alone else ["image", "mask"])
    assert torch.equal(drawn["image"], image) and torch.equal(drawn["mask"], mask.expand(4, 8, 8))
    assert {*drawn} == {*model.parts} and drawn["label"].shape == (4,)
    generate(model, chosen, 2, {"mask": mask})
    generate(model, chosen, 2, {"mask": mask, "image": image[:2]}, known={"image": torch.arange(8).expand(1, 8, 8) < 4})
    generate(model, chosen, 2, {"mask": mask, "image": image[:2]}, known={"mask": torch.arange(8).expand(8, 8) < 4})
    assert [sorted(names) for names in told] == [["mask"], ["image", "mask"], ["image", "mask"]]


def test_together_it_is_sample(small):
    model, usual = small
    a, b = generate(model, usual, 5), sample(model, 5, **settings(usual))
    assert all(torch.equal(a[name], b[name]) for name in model.parts)


def test_what_comes_later_is_unknown_where_training_has_shown_that(monkeypatch):
    """Of label, then the rest: in the label's turn the mask is unknown, and no more in its own."""
    found = config.load("digits", [*SMALL, ("modalities.mask.unknown_probability", "0.3")])
    model, asked = build_model(found), []
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda z, times, told: asked.append(times[0].tolist()) or forward(z, times, told)
    )
    generate(model, found, 1, first=["label"])
    assert [times[2] for times in asked[:3]] == [1000] * 3 and [times[1:] for times in asked[4:]] == [
        [0, 667],
        [0, 333],
    ]
    asked.clear()
    generate(model, config.load("digits", SMALL), 1, first=["label"])  # where training has not
    assert len({tuple(times) for times in asked[:3]}) == 3 and all(len(set(times)) == 1 for times in asked[:3])


def test_what_is_drawn_first_is_what_it_would_be_and_is_then_given(small):
    model, usual = small
    drawn = generate(model, usual, 5, first=["label"], seed=3)
    assert torch.equal(drawn["label"], generate(model, usual, 5, seed=3)["label"])
    # The rest has noise of its own: the label's would say more of it than the label does.
    rest = generate(model, usual, 5, {"label": drawn["label"]}, seed=3 ^ 1 << 40)
    assert torch.equal(drawn["image"], rest["image"]) and torch.equal(drawn["mask"], rest["mask"])
    again = generate(model, usual, 5, {"label": drawn["label"]}, first=["label", "label"], seed=3)
    assert torch.equal(again["image"], generate(model, usual, 5, {"label": drawn["label"]}, seed=3)["image"])


def test_the_config_says_what_is_drawn_first(small):
    model, usual = small
    turns = dataclasses.replace(usual, sample=dataclasses.replace(usual.sample, first=["label", "mask"]))
    a, b = generate(model, turns, 4), generate(model, usual, 4, first=["label", "mask"])
    assert all(torch.equal(a[name], b[name]) for name in model.parts)
    # An empty list is a choice too.
    assert torch.equal(generate(model, turns, 4, first=[])["image"], generate(model, usual, 4)["image"])


def test_what_was_drawn_guides(small):
    model, usual = small
    plain, guided = (generate(model, usual, 4, first=["label"], guidance_scale=g) for g in (1.0, {"label": 3.0}))
    assert torch.equal(plain["label"], guided["label"]) and not torch.equal(plain["image"], guided["image"])
    both = generate(model, usual, 4, first=["label"], guidance_scale=3.0)
    assert torch.equal(both["image"], guided["image"])


def test_everything_drawn_in_turns_takes_as_many_draws(small, monkeypatch):
    import mmfast.generate as module

    model, usual = small
    given = []
    monkeypatch.setattr(
        module,
        "sample_checked",
        lambda m, n, these, *how: given.append(list(these)) or sample_checked(m, n, these, *how),
    )
    drawn = generate(model, usual, 2, first=["label", "mask", "image"])
    assert given == [[], ["label"], ["label", "mask"]] and set(drawn) == set(model.parts)


def test_errors(small):
    model, usual = small
    with pytest.raises(MmfastError, match=r"sample\.first's modality is 'lable'.*did you mean 'label'"):
        generate(model, usual, 2, first=["lable"])
    with pytest.raises(MmfastError, match="guidance_scale's modality is 'mask'"):
        generate(model, usual, 2, first=["label"], guidance_scale={"mask": 2.0})
    with pytest.raises(MmfastError, match=r"sample\.first is 'masks'; .*did you mean 'mask'"):
        config.load("digits", [("sample.first", "[masks]")])
    hidden = config.load("masked-image", [("backbone", "{kind: unet, channels: 16, multipliers: [1], blocks: 1}")])
    with pytest.raises(MmfastError, match="masked, which is made from another modality"):
        generate(build_model(hidden), hidden, 2, first="masked")


def test_what_cannot_be_drawn_first_is_refused_before_there_is_a_run(tmp_path):
    digits = [("modalities", "{image: {kind: image, channels: 1, size: 8, levels: 17}, "
                             "hidden: {kind: masked, of: image, channels: 1, size: 8, block: 2}}")]  # fmt: skip
    wrong = config.load("digits", [*digits, *SMALL, ("sample.first", "[hidden]")])
    with pytest.raises(MmfastError, match="hidden, which is made from another modality"):
        train(wrong, str(tmp_path / "run"), quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_command_line_draws_in_turn(tmp_path, capsys):
    run = str(tmp_path / "run")
    options = [word for key, value in SMALL for word in (f"--{key}", value)]
    assert (
        main(["train", "digits", "--out", run, "--train.steps", "2", "--evaluate.samples", "0", "--quiet", *options])
        == 0
    )
    capsys.readouterr()
    assert main(["sample", run, "--first", "label", "mask", "--n", "2", "--quiet"]) == 0
    assert capsys.readouterr().out.strip().endswith(".png")
    assert title([], ["label", "mask"]) == "label, then mask first, the rest given it"
    assert title(["label=3"], ["label"]) == "given label=3: the rest generated"
    assert title(iter(["label=3"]), ["label", "mask"]) == "given label=3: mask first, the rest given it"
    assert title([], []) == "generated together, nothing given"
    assert main(["sample", run, "--first", "masks", "--n", "2", "--quiet"]) == 2
    assert "did you mean 'mask'" in capsys.readouterr().err


class Both(Ranks):
    """Two ranks in one process: what each would draw, in turn."""

    def __init__(self, index=0):
        super().__init__(index, 2)

    def map(self, work, items):
        return [work(item) for item in items]


@pytest.mark.parametrize("given", [{}, {"label": [3]}, {"label": [3, 1, 4, 1, 5]}], ids=["nothing", "one", "each"])
def test_ranks_draw_what_one_process_does(small, given):
    model, usual = small
    given = {name: torch.tensor(x) for name, x in given.items()}
    count = 5 if len(given.get("label", ())) < 2 else None
    for more in ({}, {"sample_ids": torch.arange(5) + 70}, {"sample_ids": None}, {"first": ["mask"]}):
        alone, shared = (generate(model, usual, count, given, ranks=ranks, **more) for ranks in (ALONE, Both()))
        assert list(alone) == list(shared)
        for name, x in alone.items():
            torch.testing.assert_close(shared[name], x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("of_each", [False, True])
def test_ranks_draw_around_what_is_known_whatever_stands_in_the_rest(small, of_each):
    model, usual = small
    image = torch.linspace(-1, 1, 5 * 64).reshape(5, 1, 8, 8)
    there = torch.rand(5 if of_each else 1, 1, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.5
    image[~there.expand_as(image)] = torch.nan
    known = {"image": there if of_each else there[0]}
    alone, shared = (generate(model, usual, None, {"image": image}, known=known, ranks=r) for r in (ALONE, Both()))
    for name, x in alone.items():
        torch.testing.assert_close(shared[name], x, atol=1e-5, rtol=0)
    assert torch.equal(shared["image"][there.expand_as(image)], image[there.expand_as(image)])


def test_the_first_rank_alone_shows_a_bar(small, monkeypatch):
    import mmfast.generate as module

    shown = []
    model, usual = small
    monkeypatch.setattr(
        module,
        "sample_checked",
        lambda m, n, given, inside, how: shown.append((n, how["progress"])) or sample_checked(m, n, given, inside, how),
    )
    for index in (0, 1):
        generate(model, usual, 5, ranks=Both(index), progress="bar")
    assert shown == [(3, "bar"), (2, "bar"), (3, False), (2, False)]


def test_a_network_that_is_not_told_is_asked_for_nothing_unknown(monkeypatch):
    """And one that is, for what training has shown unknown and is neither given nor drawn now."""
    import mmfast.generate as module

    asked = []
    monkeypatch.setattr(module, "sample_checked", lambda m, n, given, inside, how: asked.append(how["unknown"]) or
                        {name: torch.zeros(1) for name in ("image", "label", "mask")})  # fmt: skip
    shares = [(f"modalities.{name}.unknown_probability", "0.3") for name in ("label", "mask")]
    for told, first, known, unknown in (
        ("true", ["image"], {}, [["label", "mask"], ()]), ("true", ["label"], {}, [["mask"], ()]),
        ("true", ["image"], {"label": torch.zeros(1).long()}, [["mask"], ()]), ("false", ["image"], {}, [(), ()]),
        ("true", [], {}, [()]),
    ):  # fmt: skip
        chosen = config.load("digits", [*SMALL, *shares, ("told", told)])
        asked.clear()
        generate(build_model(chosen), chosen, 1, known, first=first)
        assert asked == unknown
    asked.clear()
    chosen = config.load("digits", [*SMALL, ("modalities.mask.unknown_probability", "0.3")])
    generate(build_model(chosen), chosen, 1, first=["image"])
    assert asked == [["mask"], ()]
    generate(build_model(chosen), chosen, 1, first=["image"], unknown=["label"])
    assert asked[2] == ["label"]  # what is said counts


def test_the_arguments_are_those_of_the_config():
    other = {"steps": 7, "spacing": 1.5, "sampler": "ddim", "eta": 0.5, "guidance_scale": 2.0, "clamp": 3.0,
             "batch_size": 11, "precision": "bf16", "heads": "sampled", "offset": {"mask": 0.1},
             "resample": 3}  # fmt: skip
    chosen = config.load("digits", [("seed", "9"), *((f"sample.{name}", str(x)) for name, x in other.items())])
    assert settings(chosen) == {**other, "seed": 9}


def test_a_network_that_is_not_told_cannot_be_guided():
    """The config's scale does not apply, and training says so; one that is asked for is refused."""
    plain, scaled = (config.load("digits", [*SMALL, ("told", "false"), *more]) for more in
                     ((), [("sample.guidance_scale", "3")]))  # fmt: skip
    model, given = build_model(plain), {"label": torch.tensor([3])}
    drawn = [generate(model, chosen, 2, given, steps=2)["image"] for chosen in (plain, scaled)]
    assert torch.equal(*drawn) and how_drawn(model, scaled, ["label"], {})["guidance_scale"] == 1
    for scale in (5, {"label": 5}):
        with pytest.raises(MmfastError, match="but the model was trained with told: false: its network is not told"):
            generate(model, plain, 2, given, steps=2, guidance_scale=scale)
    assert torch.equal(generate(model, plain, 2, given, steps=2, guidance_scale=1)["image"], drawn[0])
