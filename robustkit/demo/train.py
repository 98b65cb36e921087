"""How the three digit networks were trained, on demo:mnist-train only.

`python -m robustkit.demo.train --out DIR` does it again.

- mnist-plain: cross-entropy.
- mnist-smooth: cross-entropy on digits with Gaussian noise of standard deviation 0.25 (Cohen et al. 2019,
  https://arxiv.org/abs/1902.02918); the noisy digits leave [0, 1] on purpose.
- mnist-robust: adversarial training at Linf 0.2 (Madry et al. 2018, https://arxiv.org/abs/1706.06083), eps ramped up
  over the first part, as a network this small otherwise stays at chance.

All draws come from one seeded generator, so the same command on the same machine, torch version and thread count
gives the same bits; elsewhere floating-point sums run in another order and the accuracies agree to about a point.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from robustkit.demo.digits import Part, digits
from robustkit.demo.networks import DigitNet, initialise

log = logging.getLogger(__name__)

# (net, x, y, generator, progress in [0, 1]) -> what the network is trained on instead of x
Perturbation = Callable[[DigitNet, Tensor, Tensor, torch.Generator, float], Tensor]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What one network is trained with."""

    epochs: int
    perturb: Perturbation
    peak_rate: float = 2e-3
    decay: float = 1e-4
    batch: int = 100
    seed: int = 0


def unchanged(net: DigitNet, x: Tensor, y: Tensor, generator: torch.Generator, progress: float) -> Tensor:
    """The digits as they are."""
    return x


def noisy(net: DigitNet, x: Tensor, y: Tensor, generator: torch.Generator, progress: float) -> Tensor:
    """Gaussian noise of standard deviation 0.25."""
    return x + 0.25 * torch.randn(x.shape, generator=generator)


def adversarial(net: DigitNet, x: Tensor, y: Tensor, generator: torch.Generator, progress: float) -> Tensor:
    """PGD inside Linf eps from a uniform start, eps growing to 0.2 over the first 40 % of training."""
    steps, eps = 10, 0.2 * min(1.0, 0.1 + progress / 0.4)
    low, high = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
    start = x + eps * (2 * torch.rand(x.shape, generator=generator) - 1)
    adv = torch.minimum(torch.maximum(start, low), high)
    for _ in range(steps):
        adv.requires_grad_(True)
        (grad,) = torch.autograd.grad(F.cross_entropy(net(adv), y, reduction="sum"), adv)
        adv = torch.minimum(torch.maximum(adv.detach() + 2.5 * eps / steps * grad.sign(), low), high)
    return adv


RECIPES = {
    "mnist-plain": Recipe(epochs=40, perturb=unchanged),
    "mnist-smooth": Recipe(epochs=40, perturb=noisy),
    "mnist-robust": Recipe(epochs=80, perturb=adversarial, decay=5e-4),
}


def jitter(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each digit turned by up to 10 degrees, scaled by up to 10 % and moved by up to two pixels."""
    angle, scale, *shift = (2 * torch.rand(4, len(x), generator=generator) - 1).unbind()
    angle, scale = angle * torch.pi / 18, 1 + 0.1 * scale
    rows = (
        torch.stack([scale * angle.cos(), -scale * angle.sin(), shift[0] * 2 / 14], dim=1),
        torch.stack([scale * angle.sin(), scale * angle.cos(), shift[1] * 2 / 14], dim=1),
    )
    grid = F.affine_grid(torch.stack(rows, dim=1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False).clamp(0, 1)


def tensors(part: Part) -> tuple[Tensor, Tensor]:
    """The digits of a part as float images (N, 1, 28, 28) in [0, 1] and labels (N,)."""
    images, labels = digits(part)
    return torch.from_numpy(images.copy()).unsqueeze(1).float() / 255, torch.from_numpy(labels.copy())


def train(recipe: Recipe) -> DigitNet:
    """One network as the recipe says: AdamW, one cycle of the learning rate, the last weights (no selection)."""
    generator = torch.Generator().manual_seed(recipe.seed)
    images, labels = tensors("train")
    with torch.random.fork_rng(devices=[]):  # the constructors draw weights, which are then drawn again
        net = DigitNet()
    initialise(net, generator)
    steps = recipe.epochs * (len(labels) // recipe.batch)
    optimizer = torch.optim.AdamW(net.parameters(), lr=recipe.peak_rate, weight_decay=recipe.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.peak_rate, total_steps=steps, pct_start=0.2)
    done = 0
    for epoch in range(recipe.epochs):
        for rows in torch.randperm(len(labels), generator=generator).split(recipe.batch):
            x, y = jitter(images[rows], generator), labels[rows]
            x = recipe.perturb(net, x, y, generator, done / steps)
            loss = F.cross_entropy(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            done += 1
        log.info("epoch %d: loss %.4f", epoch + 1, loss.item())
    return net.eval()


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the named networks (all three by default) and store each as DIR/NAME.safetensors."""
    parser = argparse.ArgumentParser(prog="python -m robustkit.demo.train", description=main.__doc__)
    parser.add_argument("--only", nargs="+", default=list(RECIPES), choices=list(RECIPES), help="which networks")
    parser.add_argument("--out", type=Path, required=True, help="folder for the safetensors files")
    parser.add_argument("--threads", type=int, default=2, help="torch threads; part of what decides the bits")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        log.info("training %s", name)
        save_file(train(RECIPES[name]).state_dict(), args.out / f"{name}.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
