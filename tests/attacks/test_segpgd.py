"""SegPGD against a slow version written from the paper."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from robustkit.attacks.pgd import PGD
from robustkit.attacks.segpgd import SegPGD
from robustkit.core.dense import segpgd_labels
from robustkit.core.errors import UsageError
from robustkit.core.objective import LabelObjective
from robustkit.core.task import Regression
from robustkit.core.threat import L2, Linf
from tests.attacks.test_cospgd import slow_attack, worst
from tests.dense import segmentation


def slow_loss(logits, y, void, lam, towards):
    """Eq. 3 to 5 of one sample: right pixels by 1 - lambda, wrong ones by lambda; the other way round to a target."""
    total, count = 0.0, 0
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            if int(y[i, j]) == void:
                continue
            z, label = logits[:, i, j], y[i, j]
            right = int(z.argmax()) == int(label)
            weight = (lam if right else 1 - lam) if towards else (1 - lam if right else lam)
            total = total + weight * F.cross_entropy(z[None], label[None])
            count += 1
    return total / max(count, 1)


@pytest.mark.parametrize("towards", [False, True])
@pytest.mark.parametrize("progress", [0.0, 0.3, 0.95])
def test_the_loss_is_the_papers(progress, towards):
    model, x, y = segmentation()
    logits = model(x).detach().requires_grad_()
    fast = segpgd_labels(logits, y, 255, progress, towards=towards)
    slow = torch.stack([slow_loss(logits[i], y[i], 255, progress / 2, towards) for i in range(len(x))])
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad(v.sum(), logits, retain_graph=True)[0] for v in (fast, slow)]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("threat", [Linf(0.03), L2(0.4)], ids=lambda t: t.norm)
@pytest.mark.parametrize("targeted", [False, True])
def test_equals_the_paper_step_by_step(threat, targeted):
    steps = 5
    model, x, y = segmentation()
    target = torch.where(y == 255, y, 1) if targeted else None
    found = SegPGD(threat=threat, steps=steps, random_start=False)(model, x, y, target=target)
    for i in range(len(x)):
        label, sign = (target[i], -1) if targeted else (y[i], 1)
        calls = iter(range(steps))

        def loss(logits, label=label, calls=calls):
            return slow_loss(logits, label, 255, next(calls) / (2 * steps), targeted)

        points = slow_attack(model, x[i], loss, threat, steps, threat.eps / 3, sign)
        expected = worst(model, model.task, points, y[i], None if target is None else target[i])
        torch.testing.assert_close(found.adversarial[i], expected, rtol=0, atol=1e-9)
        torch.testing.assert_close(found.last[i], points[-1], rtol=0, atol=1e-9)


def test_with_even_weights_it_is_pgd():
    """At lambda = 1/2 every pixel weighs the same: half of the cross-entropy."""
    model, x, y = segmentation()
    logits = model(x)
    torch.testing.assert_close(2 * segpgd_labels(logits, y, 255, 1.0), model.task.loss(logits, y))


def test_every_restart_begins_with_right_pixels():
    model, x, y = segmentation()
    asked = []
    plain = LabelObjective.at
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LabelObjective, "at", lambda self, progress: asked.append(progress) or plain(self, progress))
        SegPGD(threat=Linf(0.01), steps=4, restarts=2)(model, x, y)
    assert asked == [0.0, 0.25, 0.5, 0.75] * 2


def test_pgd_with_this_loss_takes_the_same_steps():
    model, x, y = segmentation()
    options = {"threat": Linf(0.03), "steps": 5, "step_size": 0.01, "random_start": False}
    one, two = SegPGD(**options)(model, x, y), PGD(loss="segpgd", **options)(model, x, y)
    assert torch.equal(one.last, two.last)


def test_values_are_refused():
    with pytest.raises(UsageError, match="Use loss=cospgd, which is defined for values"):
        LabelObjective(Regression(), torch.zeros(1, 2, 3, 3), loss="segpgd")
