"""A smoothed classifier with gradients, for attacks: SmoothAdv's averaged softmax (https://arxiv.org/abs/1906.04584).

``log(mean_j softmax(f(x + sigma * e_j)))`` over a few noisy copies, the same for the whole attack and for all inputs,
and over the votes: its cross-entropy is the loss of the paper, and any attack runs on it. It only proposes inputs: what
the smoothed classifier makes of them is tested by fresh draws (:mod:`robustkit.certify.refutation`).
Shapes: x (N, *S), outputs (N, C). Units: those of the input. Cost: copies times votes forwards for each input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustkit.certify.randomized import Randomized
from robustkit.certify.sampler import batch_for
from robustkit.core.errors import UsageError
from robustkit.core.keyed import Draws
from robustkit.core.model import Model
from robustkit.core.outputs import as_tensor
from robustkit.core.task import Classification
from robustkit.core.types import Bounds


@dataclass(frozen=True)
class Convincing(Classification):
    """Another class counts where its probability exceeds that of the label by a lead: draws must be able to show it.

    Attributes:
        lead: difference of probabilities, 0 .. 1.
    """

    lead: float = 0.0

    def failed(self, outputs: Tensor, y: Tensor) -> Tensor:
        p = outputs.softmax(1)
        label = y[:, None]
        return p.scatter(1, label, -1).amax(1) - p.gather(1, label)[:, 0] > self.lead


class Averaged(nn.Module):
    """Logarithm of the mean softmax of several networks over noisy copies of the input.

    Args:
        nets: one for each vote.
        noise: for each vote what is added, (copies, *S).
        clip: bounds that noisy inputs are clipped to.
        gradients: whether the networks can be differentiated; others are run on inputs that ask for no gradient.
    """

    noise: Tensor

    def __init__(
        self, nets: Sequence[nn.Module], noise: Tensor, clip: Bounds | None = None, *, gradients: bool = True
    ) -> None:
        super().__init__()
        self.nets, self.clip, self.gradients = nn.ModuleList(nets), clip, gradients
        self.register_buffer("noise", noise, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.gradients else x.detach()
        logs = [self._logs(net, x, noise) for net, noise in zip(self.nets, self.noise, strict=True)]
        copies = sum(part.shape[1] for part in logs)
        return torch.cat(logs, 1).logsumexp(1) - math.log(copies)

    def _logs(self, net: nn.Module, x: Tensor, noise: Tensor) -> Tensor:
        """(N, copies, C)."""
        copies = (x[:, None] + noise).flatten(0, 1)
        copies = copies if self.clip is None else self.clip.clamp(copies)
        outputs = as_tensor(net(copies))
        wide = outputs if outputs.dtype == torch.float64 else outputs.float()
        return wide.log_softmax(1).view(len(x), len(noise), -1)


def smoothed(
    certifier: Randomized,
    model: Model,
    like: Tensor,
    *,
    samples: int = 16,
    seed: int = 0,
    turn: int = 0,
    lead: float = 0.0,
    batch: int | None = None,
) -> Model:
    """The classifier that ``certifier`` certifies, as a model that attacks can climb.

    Args:
        certifier: says which networks vote, and on which noise.
        model: the wrapped network.
        like: inputs (N, *S) such as those that will be attacked; nothing but their form counts.
        samples: noisy copies for each vote.
        seed, turn: of the noise; each turn has other copies.
        lead: by how much the probability of another class must exceed that of the label to count as a success.
        batch: most copies in a network at once; by default by the size of the input.

    Raises:
        UsageError: outputs are not one class for each input.
    """
    if len(outputs := model.output_shape(like, gradients=False)) != 1:
        raise UsageError(
            "the attack on smoothed classifiers is made for one class for each input",
            expected="outputs (N, C)",
            got=f"(N, {', '.join(map(str, outputs))})",
            where="--falsify",
            fix="Leave the attack out for dense outputs.",
        )
    votes = certifier.votes(model)
    draws = Draws(seed, torch.zeros(1, dtype=torch.long), "surrogate", turn)
    noise = _noise([vote.sigma for vote in votes], like, samples, draws)
    clip = model.bounds if certifier.clip else None
    net = Averaged([vote.model.module for vote in votes], noise, clip, gradients=differentiable(model, like))
    chunk = max(1, (batch or batch_for(like[0].numel())) // samples)
    return Model(net, task=Convincing(lead), bounds=model.bounds, chunk=chunk, name=f"smoothed {model.name}")


def differentiable(model: Model, like: Tensor) -> bool:
    """Whether the outputs depend on the inputs through operations that have a gradient; costs one forward."""
    x = like[:1].detach().clone().requires_grad_()
    with model.frozen(), model.metered(refund=True):
        try:
            return model(x).requires_grad
        except RuntimeError:  # numpy inside: "Can't call numpy() on Tensor that requires grad"
            return False


def _noise(sigmas: Sequence[float], like: Tensor, samples: int, draws: Draws) -> Tensor:
    """(votes, samples, *S); votes see the same copies but for their sigma."""
    wide = like if like.dtype == torch.float64 else like.float()
    drawn = draws.normal(wide.new_empty((1, samples, *like.shape[1:])))[0]
    return torch.stack([drawn * sigma for sigma in sigmas]).to(like.dtype)
