"""An offset in a config and on the command line, and sampling with one by a U-Net; what is refused."""

import importlib
import math

import pytest
import torch
from test_sampling_untrained import CONFIG, data

from mmfast import MmfastError, build, config
from mmfast.cli import main
from mmfast.generate import generate
from mmfast.sample import sample
from mmfast.training import train

sample_module = importlib.import_module("mmfast.sample")
OFFSET = ("sample.offset.mask", "0.4")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A config of image, label and mask, and its model with random weights in every layer."""
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(CONFIG)
    model = build.build_model(config.load(str(path))).eval()
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=g))
    return model, config.load(str(path), [("sample.steps", "6"), OFFSET]), str(path)


@pytest.mark.parametrize("share", [0.5, -0.5])
def test_what_leaves_no_trace_goes_with_the_last(small, monkeypatch, share):
    """It is never told before the end, and is read off the rest there."""
    path, asked = small[2], []
    model = build.build_model(config.load(path, [("modalities.label.weight.kind", "none")]))
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda z, times, told: asked.append((times[0].tolist(), set(told))) or forward(z, times, told)
    )
    drawn = sample(model, 2, steps=3, offset={"mask": share}, heads="sampled", precision="bf16")
    first, last = [[1000, 500, 0], [1000, 1000, 500]]
    image, mask = (last, first) if share > 0 else (first, last)
    assert [times for times, _ in asked] == [list(at) for at in zip(image, last, mask, strict=True)]
    assert [told for _, told in asked] == [set(), set(), {"mask" if share > 0 else "image"}]
    for name, x in drawn.items():
        model.part(name).check(x, name)


@pytest.mark.slow
@pytest.mark.parametrize("names", [(), ("label",), ("image",)], ids=lambda n: "+".join(n) or "joint")
def test_an_example_does_not_depend_on_its_batch(small, names):
    model = small[0]
    given = {name: data(model, 7)[name] for name in names}
    options = {"steps": 6, "seed": 4, "guidance_scale": 1.5, "offset": {"mask": 0.4, "label": -0.2}}
    whole = sample(model, 7, given, batch_size=7, **options)
    for size in (1, 3):
        found = sample(model, 7, given, batch_size=size, **options)
        torch.testing.assert_close(found["image"], whole["image"], rtol=1e-4, atol=1e-4)
        for name in ("label", "mask"):
            assert (found[name] != whole[name]).float().mean() < 0.01


def test_progress_counts_every_step_of_every_batch(small, monkeypatch):
    made, bar = [], sample_module.Bar
    monkeypatch.setattr(sample_module, "Bar", lambda *args, **how: made.append(bar(*args, **how)) or made[-1])
    sample(small[0], 5, steps=7, batch_size=2, offset={"mask": 0.4}, progress="drawing")
    assert [(bar.total, bar.done) for bar in made] == [(21, 21)]


def test_as_many_steps_as_the_path_has_timesteps(small):
    with pytest.raises(MmfastError, match=r"steps is 1401; it should lie in 1 \.\. 1400"):
        sample(small[0], 1, steps=1401, offset={"mask": 0.4})


def test_the_config_has_an_offset(small):
    """`generate` draws by it, in the turns too, and in whatever direction."""
    model, usual, _ = small
    assert usual.sample.offset == {"mask": 0.4}
    plain = {"steps": 6, "sampler": usual.sample.sampler}
    for given in ({}, {"mask": data(model, 2)["mask"]}):
        a, b = generate(model, usual, 2, given), sample(model, 2, given, **plain, offset={"mask": 0.4})
        assert all(torch.equal(a[name], b[name]) for name in model.parts)
        together = generate(model, usual, 2, given, offset={})
        assert torch.equal(together["image"], sample(model, 2, given, **plain)["image"])
        assert torch.equal(together["image"], a["image"]) == bool(given)
    turn = generate(model, usual, 2, first=["label"])
    assert torch.equal(turn["label"], sample(model, 2, **plain, offset={"mask": 0.4})["label"])
    rest = sample(model, 2, {"label": turn["label"]}, **plain, offset={"mask": 0.4}, seed=1 << 40)
    assert torch.equal(turn["image"], rest["image"])


@pytest.mark.parametrize(
    ("offset", "match"),
    [
        ({"image": 0.1}, "offset has image, the anchor"),
        ({"maks": 0.1}, "offset's modality is 'maks'.*did you mean 'mask'"),
        ({"mask": 1.0}, r"offset\['mask'\] is 1\.0; it should be a share of T between -1 and 1.*`first`"),
        ({"mask": -1}, r"offset\['mask'\] is -1"),
        ({"label": 0.1, "mask": math.nan}, r"offset\['mask'\] is nan"),
        ({"mask": math.inf}, r"offset\['mask'\] is inf"),
        ({"mask": "0.1"}, r"offset\['mask'\] is '0\.1'"),
        ({"mask": True}, r"offset\['mask'\] is True"),
        (["mask"], r"offset is \['mask'\]; it should be a dict"),
        (0.2, "offset is 0.2; it should be a dict"),
    ],
)
def test_errors(small, offset, match):
    with pytest.raises(MmfastError, match=match):
        sample(small[0], 1, steps=2, offset=offset)


def test_errors_of_the_model(small):
    path = small[2]
    for pairs in ([("space", "shared")], [("told", "false")]):
        model = build.build_model(config.load(path, pairs))
        with pytest.raises(MmfastError, match=r"offset is \{'mask': 0\.1\}, but z_t has one time; it needs"):
            sample(model, 1, steps=2, offset={"mask": 0.1})
    model = build.build_model(config.load(path, [("modalities.mask.weight.kind", "none")]))
    with pytest.raises(MmfastError, match=r"offset has mask, which leaves no trace in z_t .*use `first`"):
        sample(model, 1, steps=2, offset={"mask": 0.1})
    hidden = "{kind: masked, of: image, channels: 1, size: 8, block: 2}"
    model = build.build_model(config.load(path, [("modalities.hidden", hidden)]))
    with pytest.raises(MmfastError, match="offset has hidden, which is made from another modality"):
        sample(model, 1, steps=2, offset={"hidden": 0.1})


def test_errors_of_the_config(small, tmp_path):
    for key, value, match in (
        ("sample.offset.maks", "0.1", r"sample\.offset is 'maks'.*did you mean 'mask'"),
        ("sample.offset.image", "0.1", r"sample\.offset has image, the anchor"),
        ("sample.offset.mask", "-1", r"sample\.offset\.mask is -1"),
        ("sample.offset.mask", ".nan", r"sample\.offset\.mask is nan"),
        ("space", "shared", r"sample\.offset needs space=own"),
        ("told", "false", r"sample\.offset needs space=own and told=true"),
    ):
        with pytest.raises(MmfastError, match=match):
            config.load("digits", [OFFSET, (key, value)])
    for key, value, wanted in (("offset", "[mask]", "keys with values"), ("first", "{mask: 1}", "a list")):
        with pytest.raises(MmfastError, match=rf"sample\.{key} is .*; it should hold {wanted}"):
            config.load("digits", [(f"sample.{key}", value)])
    # What only the model knows is said before there is a run.
    wrong = config.load("digits", [("modalities.mask.weight.kind", "none"), ("sample.offset.mask", "0.2")])
    with pytest.raises(MmfastError, match=r"sample\.offset has mask, which leaves no trace"):
        train(wrong, str(tmp_path / "run"), quiet=True)
    assert not (tmp_path / "run").exists()


def test_the_command_line(small, monkeypatch, tmp_path, capsys):
    """--offset takes names with numbers, behind the anchor too, and none for the diagonal."""
    model, usual, _ = small
    seen = []
    monkeypatch.setattr("mmfast.loaded.load_run", lambda *_: (None, usual, model))
    monkeypatch.setattr(
        "mmfast.loaded.generate", lambda m, c, n, given, **how: seen.append(how) or generate(m, c, n, given, **how)
    )
    out = ["--n", "1", "--quiet", "--overwrite", "--out", str(tmp_path / "a.png")]
    for words in (["--offset", "mask=0.2", "label=-0.3"], ["--offset"], []):
        assert main(["sample", "run", *out, *words]) == 0
    assert [how.get("offset") for how in seen] == [{"mask": 0.2, "label": -0.3}, {}, None]
    capsys.readouterr()
    for word, match in (("mask", "--offset mask has no number"), ("maks=0.1", "did you mean 'mask'")):
        assert main(["sample", "run", *out, "--offset", word]) == 2
        assert match in capsys.readouterr().err
