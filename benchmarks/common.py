"""Subjects that do the same work, and a clock that treats them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import robustkit as rk
from robustkit.core.model import Model

THREADS = 2
OURS, BARE = "robustkit", "bare loop"
Run = Callable[[], object]


@dataclass(frozen=True)
class Work:
    """PGD in l-infinity on some samples of a network.

    Attributes:
        title: what is done.
        against: whose time ours is divided by.
        bar: largest ratio that was asked for.
        note: how the conditions were made.
    """

    title: str
    model: Model
    x: Tensor
    y: Tensor
    eps: float
    step: float
    steps: int
    against: str
    bar: float
    note: str
    rounds: int

    @property
    def net(self) -> nn.Module:
        """The network as a peer takes it: from images in [0, 1] to logits, in evaluation mode."""
        return self.model.module.eval()


def works() -> list[Work]:
    """What is measured."""
    photos = rk.load("demo:efficientnet_lite0")
    x, _ = rk.open_data("demo:photos", preprocessing=photos.preprocessing).take(range(4))
    x = torch.cat([x, x.flip(3), x.flip(2), x.flip(2, 3)])
    digits, _ = rk.open_data("demo:mnist").take(range(500))
    robust, plain = rk.load("demo:mnist-robust"), rk.load("demo:mnist-plain")
    tiny = "labels are the network's own predictions and eps is 1e-5, so that no sample breaks"
    return [
        Work(
            "PGD-10, EfficientNet-Lite0, 16 photos 224x224, none broken",
            photos,
            x,
            photos(x).argmax(1),
            1e-5,
            1e-6,
            10,
            "torchattacks",
            0.45,
            tiny + "; the photos are demo:photos and three reflections of each",
            3,
        ),
        Work(
            "PGD-40, demo:mnist-robust, batch of 500, none broken",
            robust,
            digits,
            robust(digits).argmax(1),
            1e-5,
            1e-6,
            40,
            BARE,
            1.10,
            tiny,
            7,
        ),
        Work(
            "PGD-100, demo:mnist-plain, batch of 500, nearly all broken in 3 steps",
            plain,
            digits,
            plain(digits).argmax(1),
            0.3,
            0.15,
            100,
            "torchattacks",
            0.15,
            "eps 0.3, step size 0.15",
            3,
        ),
    ]


def bare_pgd(work: Work) -> Tensor:
    """The loop that a person writes: the limit for a method that drops nothing and checks nothing."""
    x, y, eps = work.x, work.y, work.eps
    adv = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)
    for _ in range(work.steps):
        adv.requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(work.net(adv), y), adv)
        adv = (x + (adv.detach() + work.step * grad.sign() - x).clamp(-eps, eps)).clamp(0, 1)
    return adv


def our_pgd(work: Work) -> Tensor:
    """robustkit's PGD, with its verdicts."""
    attack = rk.PGD(threat=rk.Linf(work.eps), steps=work.steps, step_size=work.step)
    return attack(work.model, work.x, work.y).adversarial


def subjects(work: Work) -> dict[str, Run]:
    """Name -> what is timed; peers that are not installed are left out."""
    found: dict[str, Run] = {OURS: partial(our_pgd, work), BARE: partial(bare_pgd, work)}
    for name, make in (("torchattacks", _torchattacks), ("Foolbox", _foolbox), ("ART", _art)):
        try:
            found[name] = make(work)
        except ImportError:
            continue
    return found


def _torchattacks(work: Work) -> Run:
    import torchattacks

    attack = torchattacks.PGD(work.net, eps=work.eps, alpha=work.step, steps=work.steps, random_start=True)
    return partial(attack, work.x, work.y)


def _foolbox(work: Work) -> Run:
    import foolbox

    model = foolbox.PyTorchModel(work.net, bounds=(0, 1), device=work.x.device)
    attack = foolbox.attacks.LinfPGD(abs_stepsize=work.step, steps=work.steps, random_start=True)
    return partial(attack, model, work.x, work.y, epsilons=work.eps)


def _art(work: Work) -> Run:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    outputs = work.model.output_shape(work.x)[0]
    model = PyTorchClassifier(
        work.net, nn.CrossEntropyLoss(), tuple(work.x.shape[1:]), outputs, clip_values=(0, 1), device_type="cpu"
    )
    attack = ProjectedGradientDescentPyTorch(
        model,
        eps=work.eps,
        eps_step=work.step,
        max_iter=work.steps,
        num_random_init=1,
        batch_size=len(work.x),
        verbose=False,
    )
    return partial(attack.generate, work.x.numpy(), work.y.numpy())


def alternate(runs: dict[str, Run], rounds: int) -> dict[str, float]:
    """Median seconds of each, after one warm-up, in turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if turn:
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}
