"""A preset made so small that a run of it takes a second."""

from mmfast import config as configs

TINY = [
    ("backbone", "{kind: mlp, width: 32, blocks: 1, features: 4}"),
    ("train.batch_size", "16"),
    ("train.device", "cpu"),
    ("train.sample_every", "0"),
    ("train.tensorboard", "false"),
    ("train.validate_every", "0"),
    ("sample.steps", "2"),
    ("sample.count", "2"),
    ("evaluate.samples", "0"),
]


def tiny(**extra):
    pairs = [(key.replace("__", "."), str(value)) for key, value in extra.items()]
    return configs.load("digits", [*TINY, *pairs])


def flags(pairs):
    return [word for key, value in pairs for word in (f"--{key}", value)]
