"""Training: the trainer and its loop, the loss, what an example of a run is, averages, CUDA graphs and the log."""

from mmfast.training.trainer import Trainer, fit, train

__all__ = ["Trainer", "fit", "train"]
