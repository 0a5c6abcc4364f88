"""mmfast's ops in a plain PyTorch training loop: handwritten digits, with their labels as a second modality.

A label is encoded as a pattern that leaves its mark in z_t halfway through the process, and is gone at both ends.
Sampling puts the pattern of a wanted label there, and a digit of that label comes out; the network is told nothing.

    python examples/train_plain.py --steps 3000 --out digits.png

Needs scikit-learn, for the digits.
"""

import argparse

import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn
from tqdm import tqdm, trange

import mmfast
from mmfast import ops
from mmfast.backbones.mlp import Backbone, Spec

T = 200

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--steps", type=int, default=3000, help="training steps [3000]")
parser.add_argument("--batch", type=int, default=128, help="digits a step [128]")
parser.add_argument("--out", default="digits.png", help="the picture of samples [digits.png]")
parser.add_argument("--seed", type=int, default=0, help="of the weights, the order and all noise [0]")
args = parser.parse_args()
torch.manual_seed(args.seed)

digits = load_digits()
images = torch.from_numpy(digits.images).float()[:, None] / 8 - 1  # [1797, 1, 8, 8] in -1 .. 1
labels = torch.from_numpy(digits.target)
patterns = torch.randn(10, 1, 8, 8).sign()  # E(label)
sched = mmfast.Schedule.cosine(T, {"label": mmfast.bridge(2.0)})


class Net(nn.Module):
    """The noise in z_t."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Backbone(Spec(width=256, blocks=3), in_channels=1, size=8)
        self.head = nn.Conv2d(self.body.features, 1, 1)

    def forward(self, z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(z, t).pixels)


net = Net()
optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3)
losses = []
for step in (bar := trange(args.steps, desc="train")):
    i = torch.randperm(len(images))[: args.batch]
    t = torch.randint(1, T + 1, (len(i),))
    # The noise is made from its identity, within q_sample and once more within the loss: it is never stored.
    identity = {"seed": args.seed, "sample_ids": i, "draw": step}
    z = ops.q_sample(images[i], {"label": patterns[labels[i]]}, t, sched, **identity, return_noise=False)
    loss = ops.diffusion_loss(net(z, t), images[i], t, sched, **identity)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    losses.append(loss.item())
    bar.set_postfix(loss=f"{losses[-1]:.3f}")

tenth = max(1, args.steps // 10)
print(f"loss: {sum(losses[:tenth]) / tenth:.3f} in the first tenth, {sum(losses[-tenth:]) / tenth:.3f} in the last")

wanted = torch.arange(10).repeat_interleave(10)  # a row for each label
with torch.no_grad():
    z = ops.randn((100, 1, 8, 8), seed=args.seed, stream=1)
    for t in tqdm(range(T, 0, -1), desc="sample"):
        noise = net(z, torch.full((100,), t))
        z, _ = ops.step(
            z, noise, {"label": patterns[wanted]}, t, sched, clamp=1.0, seed=args.seed, stream=2, draw=t
        )  # fmt: skip

grid = z.reshape(10, 10, 8, 8).transpose(1, 2).reshape(80, 80)
picture = Image.fromarray(((grid.clamp(-1, 1) + 1) * 127.5).byte().numpy()).resize((480, 480), Image.Resampling.NEAREST)
picture.save(args.out)
print(f"samples: {args.out}")
