"""What an example is depends on (seed, its number) alone; and what a batch, its rate and the average are of it."""

import pytest
import torch
from tiny import tiny

from mmfast.build import build_data, build_model
from mmfast.data import Batch
from mmfast.errors import MmfastError
from mmfast.training.ema import EMA
from mmfast.training.examples import Order, given_flags, timesteps
from mmfast.training.objective import losses
from mmfast.training.trainer import learning_rate


def test_order_is_a_new_permutation_every_epoch():
    order = Order(seed=3, length=50)
    epochs = [[order.index(e * 50 + i) for i in range(50)] for e in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    # Reading it from the middle, or backwards, gives the same.
    assert [Order(3, 50).index(n) for n in (149, 75, 0)] == [epochs[2][49], epochs[1][25], epochs[0][0]]
    assert [Order(4, 50).index(n) for n in range(50)] != epochs[0]


def test_timesteps_and_given_are_uniform_and_depend_on_the_number_alone():
    numbers = torch.arange(200_000)
    t = timesteps(0, numbers, 1000)
    assert int(t.min()) == 1 and int(t.max()) == 1000
    # Chi-square over 1000 cells of expectation 200: mean 999, standard deviation 44.7; five of them.
    counts = torch.bincount(t - 1, minlength=1000).double()
    assert abs(float(((counts - 200) ** 2 / 200).sum()) - 999) < 5 * 44.7
    given = given_flags(0, numbers, [0.25] * 6)
    assert torch.allclose(given.mean(0), torch.tensor(0.25), atol=5 * (0.25 * 0.75 / 200_000) ** 0.5)
    assert abs(float(torch.corrcoef(given.T).fill_diagonal_(0).abs().max())) < 5 / 200_000**0.5
    some = torch.tensor([7, 199_999, 3])
    assert torch.equal(timesteps(0, some, 1000), t[some]) and torch.equal(given_flags(0, some, [0.25] * 6), given[some])


def test_the_share_at_T_is_what_was_asked_for_and_leaves_the_rest_uniform():
    numbers = torch.arange(100_000)
    t = timesteps(0, numbers, 1000)
    shares = torch.tensor([0.0, 0.3, 1.0]).repeat_interleave(40_000)[:100_000]
    at_T = timesteps(0, numbers, 1000, shares)
    moved = at_T != t
    assert bool((at_T[moved] == 1000).all()) and not bool(moved[shares == 0].any())
    assert bool((at_T[shares == 1] == 1000).all())
    # Of 40,000 examples 0.3 are moved, but for the thousandth that was at T before.
    assert abs(float(moved[shares == shares[50_000]].float().mean()) - 0.3 * 0.999) < 5 * (0.21 / 40_000) ** 0.5
    kept = t[(shares == shares[50_000]) & ~moved].double()
    assert abs(float(kept.mean()) - 500.5) < 5 * 288.7 / 28_000**0.5


def test_given_at_T_moves_the_examples_that_are_given_it_and_no_others(monkeypatch):
    """t as the loss draws it, seen where z_t is made."""
    from mmfast.training import objective

    seen: list[torch.Tensor] = []
    q_sample = objective.ops.q_sample

    def spy(z0, terms, t, *rest, **options):
        seen.append(t)
        return q_sample(z0, terms, t, *rest, **options)

    monkeypatch.setattr(objective.ops, "q_sample", spy)
    numbers = torch.arange(256)
    for options in (
        {"modalities__image__given_at_T": "null"},
        {"modalities__image__given_at_T": 1.0},
        {"modalities__image__given_at_T": 0.0, "modalities__label__given_at_T": 1.0},
        {"modalities__image__given_at_T": 1.0, "told": False},
    ):
        config = tiny(**options)
        losses(build_model(config), build_data(config).train.__getitems__(range(256)), numbers, config)
    usual, of_image, of_label, untold = seen
    flags = given_flags(0, numbers, [0.25, 0.4, 0.25]).bool()  # as the preset has them
    assert torch.equal(usual, timesteps(0, numbers, 1000)) and torch.equal(untold, usual)
    for t, given in ((of_image, flags[:, 0]), (of_label, flags[:, 1])):
        assert 30 < int(given.sum()) < 130
        assert bool((t[given] == 1000).all()) and torch.equal(t[~given], usual[~given])


def test_a_share_at_T_out_of_bounds_is_named():
    with pytest.raises(MmfastError, match=r"modalities\.image\.given_at_T"):
        tiny(modalities__image__given_at_T=1.5)


def test_no_example_is_given_all_that_it_has():
    """Of two, each given half of the time: a quarter neither, and the quarter that would be both goes to either."""
    numbers, n = torch.arange(100_000), 100_000
    given = given_flags(0, numbers, [0.5, 0.5])
    neither, first, second = ((given == torch.tensor(x)).all(1).float().mean() for x in ((0, 0), (1, 0), (0, 1)))
    for share, expected in ((neither, 0.25), (first, 0.375), (second, 0.375)):
        assert abs(float(share) - expected) < 5 * (expected * (1 - expected) / n) ** 0.5
    assert float(given_flags(0, numbers, [1.0]).sum()) == 0  # alone
    # Of three of which an example lacks the second, it is given one of the other two, as often either.
    present = torch.tensor([1.0, 0.0, 1.0]).expand(n, 3)
    some = given_flags(0, numbers, [1.0] * 3, present)
    assert torch.equal(some.sum(1), torch.ones(n)) and float(some[:, 1].sum()) == 0
    assert abs(float(some[:, 0].mean()) - 0.5) < 5 * 0.5 / n**0.5
    # What would not be all of it stays as it was.
    assert torch.equal(given_flags(0, numbers, [1.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 1.0]).expand(n, 3))
    assert float(given_flags(0, numbers[:5], [1.0, 1.0], torch.zeros(5, 2)).sum()) == 0


def test_a_batch_split_in_two_has_the_same_loss():
    config = tiny()
    model, data = build_model(config), build_data(config)
    batch, numbers = data.train.__getitems__(range(32)), torch.arange(100, 132)
    whole = losses(model, batch, numbers, config)
    halves = [losses(model, data.train.__getitems__(range(a, a + 16)), numbers[a : a + 16], config) for a in (0, 16)]
    for name, value in whole.items():
        # float32 means of 32 numbers in another order: a few units in the last place.
        assert torch.allclose(value, (halves[0][name] + halves[1][name]) / 2, rtol=1e-5, atol=1e-7)


def test_what_a_missing_modality_holds_changes_nothing():
    config = tiny(modalities__code="{kind: embedding, dim: 6}")
    model = build_model(config)
    torch.nn.init.normal_(model.out.weight)
    tensors = build_data(tiny()).train.__getitems__(range(8)).data
    present = {"code": torch.tensor([True, False] * 4)}
    found = []
    for junk in (0.0, float("nan")):
        code = torch.linspace(-1, 1, 48).reshape(8, 6).clone()
        code[1::2] = junk
        model.zero_grad()
        parts = losses(model, Batch({**tensors, "code": code}, present), torch.arange(8), config)
        torch.stack(list(parts.values())).sum().backward()
        found.append([x.detach() for x in parts.values()] + [p.grad.clone() for p in model.parameters()])
    # The loss of the missing ones is masked by a product, so it must be finite before: NaN would show here.
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_learning_rate_rises_then_falls():
    config = tiny(train__warmup=10, train__steps=110, train__decay="cosine", train__learning_rate=1.0)
    assert learning_rate(config, 5) == pytest.approx(0.5)
    assert learning_rate(config, 10) == pytest.approx(1.0)
    assert learning_rate(config, 60) == pytest.approx(0.5)
    assert learning_rate(config, 110) == pytest.approx(0.0, abs=1e-12)


def test_ema_is_the_weighted_sum_of_the_weights():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    ema, expected = EMA(model, 0.9), 0.0
    for step in range(1, 30):
        torch.nn.init.constant_(model.weight, float(step))
        ema.update(model, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert float(ema.model.weight) == pytest.approx(expected, rel=1e-6)
