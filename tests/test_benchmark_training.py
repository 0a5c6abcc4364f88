"""The benchmark of a training step: its eager baseline computes what the fused ops do, and it runs."""

import pytest
import torch

from benchmarks import training
from mmfast import Schedule, ops
from mmfast.ops import Block
from mmfast.schedule import carried


@pytest.mark.parametrize("missing", [False, True])
def test_the_eager_baseline_is_the_same_formula(missing):
    generator = torch.Generator().manual_seed(0)
    image, mask = (torch.randn(6, c, 4, 4, generator=generator) for c in (3, 2))
    label = torch.randn(6, 2, 1, 1, generator=generator)
    sched = Schedule.cosine(50, {"mask": carried(), "label": carried(0.17)})
    z0, terms = Block(image, 0, 7), {"mask": Block(mask, 3, 7), "label": Block(label, 5, 7)}
    t = torch.randint(1, 51, (6,), generator=generator)
    present = torch.randint(0, 2, (6, 2), generator=generator).float() if missing else None
    eager = training.eager_ops()
    found = eager.q_sample(z0, terms, t, sched, present=present, seed=1)
    # The noise is what remains of z_t without the mean; with it the fused op says the same.
    mean, _ = ops.q_sample(z0, terms, t, sched, present=present, noise=torch.zeros_like(found))
    eps = (found - mean) / (1 - sched.alpha_bar[t].float()[:, None, None, None]).sqrt()
    assert abs(eps.std() - 1) < 0.1
    z_t, _ = ops.q_sample(z0, terms, t, sched, present=present, noise=eps)
    assert torch.allclose(z_t, found, atol=1e-5)
    prediction, weight = torch.randn(6, 3, 4, 4, generator=generator), torch.rand(6, generator=generator)
    wanted = (weight * (prediction - eps[:, :3]).square().flatten(1).mean(1)).mean()
    assert torch.allclose(eager.diffusion_loss(prediction, image, t, sched, sample_weight=weight), wanted, atol=1e-4)


def test_it_runs(capsys):
    (setting, options), *_ = training.SETTINGS.items()
    rows = training.measure(setting, options, 0.05, torch.device("cpu"))
    assert [row["ops"] for row in rows] == ["mmfast", "eager torch"] and all(row["steps"] for row in rows)
    assert "of the time" in capsys.readouterr().out
