"""A diffusers training and sampling loop, on mmfast's kernels: only the scheduler's import is another.

    python examples/train_diffusers.py --steps 1500 --out digits.png

Needs diffusers, and scikit-learn for the handwritten digits.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from PIL import Image
from sklearn.datasets import load_digits
from tqdm import tqdm, trange

from mmfast.diffusers import DDPMScheduler  # was: from diffusers import DDPMScheduler

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--steps", type=int, default=1500, help="training steps [1500]")
parser.add_argument("--batch", type=int, default=64, help="digits a step [64]")
parser.add_argument("--inference-steps", type=int, default=100, help="steps of sampling [100]")
parser.add_argument("--out", default="digits.png", help="the picture of samples [digits.png]")
parser.add_argument("--seed", type=int, default=0, help="of the weights, the order and all noise [0]")
args = parser.parse_args()
if Path(args.out).exists():
    parser.error(f"--out {args.out} exists; choose another file")
torch.manual_seed(args.seed)

images = torch.from_numpy(load_digits().images).float()[:, None] / 8 - 1  # [1797, 1, 8, 8] in -1 .. 1
unet = UNet2DModel(
    sample_size=8,
    in_channels=1,
    out_channels=1,
    layers_per_block=1,
    block_out_channels=(32, 64),
    norm_num_groups=8,
    down_block_types=("DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D"),
)
scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
optimiser = torch.optim.AdamW(unet.parameters(), lr=1e-3)

losses = []
for _ in (bar := trange(args.steps, desc="train")):
    clean = images[torch.randperm(len(images))[: args.batch]]
    noise = torch.randn_like(clean)
    t = torch.randint(0, scheduler.config.num_train_timesteps, (len(clean),))
    loss = F.mse_loss(unet(scheduler.add_noise(clean, noise, t), t).sample, noise)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    losses.append(loss.item())
    bar.set_postfix(loss=f"{losses[-1]:.3f}")

tenth = max(1, args.steps // 10)
print(f"loss: {sum(losses[:tenth]) / tenth:.3f} in the first tenth, {sum(losses[-tenth:]) / tenth:.3f} in the last")

unet.eval()
generator = torch.Generator().manual_seed(args.seed)
scheduler.set_timesteps(args.inference_steps)
with torch.no_grad():
    sample = torch.randn(100, 1, 8, 8, generator=generator)
    for t in tqdm(scheduler.timesteps, desc="sample"):
        sample = scheduler.step(unet(sample, t).sample, t, sample, generator=generator).prev_sample

grid = sample.reshape(10, 10, 8, 8).transpose(1, 2).reshape(80, 80)
picture = Image.fromarray(((grid.clamp(-1, 1) + 1) * 127.5).byte().numpy()).resize((480, 480), Image.Resampling.NEAREST)
picture.save(args.out)
print(f"samples: {args.out}")
