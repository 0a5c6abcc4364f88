"""Keywords that are declared once: what functions take, show and refuse; and that no function takes too much."""

import ast
import inspect
from pathlib import Path

import pytest
import torch

import mmfast
from mmfast import Schedule, keywords, ops
from mmfast import config as configs
from mmfast.build import build_model
from mmfast.generate import generate
from mmfast.ops import forward, identity, reverse
from mmfast.sample import SAMPLE, SampleOptions, sample

SCHED = Schedule.cosine(20, {"label": mmfast.bridge(2.0)})
X, Y = torch.linspace(-1, 1, 24).reshape(2, 3, 2, 2), torch.linspace(1, 2, 24).reshape(2, 3, 2, 2)
# By op, a call of it with these options.
CALLS = {
    "block_mask": lambda **o: ops.block_mask(X, 0.5, 1, **o),
    "combine": lambda **o: ops.combine([X], torch.ones(2, 1), torch.ones(2), **o),
    "diffusion_loss": lambda **o: ops.diffusion_loss(X, Y, 5, SCHED, noise=Y, **o),
    "posterior_sample": lambda **o: ops.posterior_sample(X, Y, {"label": X}, 5, SCHED, **o),
    "q_sample": lambda **o: ops.q_sample(X, {"label": Y}, 5, SCHED, **o),
    "randn": lambda **o: ops.randn([2, 3], **o),
    "random_words": lambda **o: ops.random_words([2, 3], **o),
    "step": lambda **o: ops.step(X, Y, {"label": X}, 5, SCHED, **o),
    "step_by_table": lambda **o: ops.step_by_table(
        [X, Y], ops.Tables(torch.ones(2, 3), torch.ones(2), torch.ones(2, 2)), **o
    ),
}
DECLARED = {
    identity.Identity: identity.IDENTITY,
    forward.LossOptions: forward.LOSS,
    reverse.PosteriorOptions: reverse.POSTERIOR,
    reverse.StepOptions: reverse.STEP,
    SampleOptions: SAMPLE,
}


def options_of(name):
    """The keywords that an op's signature shows, with their defaults."""
    shown = inspect.signature(getattr(ops, name)).parameters.values()
    assert inspect.Parameter.VAR_KEYWORD not in {x.kind for x in shown}
    return {x.name: x.default for x in shown if x.kind is inspect.Parameter.KEYWORD_ONLY}


@pytest.mark.parametrize("name", CALLS)
def test_what_is_shown_is_what_holds(name):
    """Every option that the signature shows is taken, and its default is what is computed without it."""
    shown = options_of(name)
    assert {*identity.IDENTITY} <= {*shown}
    torch.manual_seed(3)
    expected = CALLS[name]()
    for option, default in shown.items():
        torch.manual_seed(3)
        if option != "noise":
            torch.testing.assert_close(CALLS[name](**{option: default}), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("option", "other"), [("seed", 5), ("stream", 9), ("draw", 2), ("sample_ids", torch.tensor([7, 8]))]
)
@pytest.mark.parametrize("name", [name for name in CALLS if name != "diffusion_loss"])
def test_each_part_of_the_identity_counts(name, option, other):
    call = CALLS[name] if name != "block_mask" else lambda **o: ops.block_mask(X.repeat(1, 1, 8, 8), 0.5, 1, **o)
    one, two = call(**{"seed": 4, option: other}), call(seed=4)
    one, two = (found[0] if isinstance(found, tuple) else found for found in (one, two))
    assert not torch.equal(one, two)


@pytest.mark.parametrize("name", CALLS)
def test_a_misspelt_keyword_is_named(name):
    words = f"{name}() got an unexpected keyword argument 'sead'; its options are "
    with pytest.raises(TypeError) as caught:
        CALLS[name](sead=3)
    assert str(caught.value).startswith(words) and "seed" in str(caught.value)


def test_sample_shows_and_refuses_too():
    shown = inspect.signature(sample).parameters
    assert [*shown][:4] == ["model", "count", "given", "known"]
    assert {name: shown[name].default for name in SAMPLE} == SAMPLE
    assert shown["steps"].annotation == "int"
    with pytest.raises(TypeError, match=r"sample\(\) got an unexpected keyword argument 'step'; its options are steps"):
        sample(None, 1, step=5)


def test_generate_shows_what_the_config_decides():
    """Its options are those of sample; help marks those that the config decides; an unknown one is refused at once."""
    shown = {x.name: x for x in inspect.signature(generate).parameters.values()}
    assert {*SAMPLE} <= {*shown} and str(shown["steps"]) == "steps: 'int' = <the config's>"
    for name in ("sample_ids", "progress"):
        assert shown[name].default == SAMPLE[name]
    config = configs.load("digits")
    with pytest.raises(TypeError, match=r"generate\(\) got an unexpected keyword .*'step'; its options are steps"):
        generate(build_model(config), config, 1, step=2)


@pytest.mark.parametrize("kind", DECLARED, ids=lambda kind: kind.__name__)
def test_types_and_defaults_are_of_the_same_keywords(kind):
    assert {*kind.__annotations__} == {*DECLARED[kind]}


def test_what_is_given_comes_before_the_defaults():
    assert keywords.filled("f", {"a": 1, "b": 2}, {"b": 3}) == {"a": 1, "b": 3}


def test_no_function_takes_more_than_eight_parameters():
    """But for the kernels, whose arguments are addresses and sizes."""
    package = Path(mmfast.__file__).parent
    found = []
    for file in package.rglob("*.py"):
        if file.relative_to(package).as_posix() == "ops/backends/triton/kernels.py":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                args = node.args
                names = [x.arg for x in (*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg) if x]
                count = len(names) - (names[:1] in (["self"], ["cls"]))
                if count > 8:
                    found.append(f"{file.name}:{node.lineno} {node.name} takes {count}")
    assert found == []
