"""CosPGD against slow versions written from the paper, with the one-hot tensor and the cosine that it names."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from robustkit.attacks.cospgd import CosPGD
from robustkit.attacks.pgd import PGD
from robustkit.core.dense import agreement, cospgd_labels, cospgd_values
from robustkit.core.errors import UsageError
from robustkit.core.model import wrap
from robustkit.core.objective import LabelObjective
from robustkit.core.task import Classification, DenseClassification, Regression
from robustkit.core.threat import L2, Linf
from tests.dense import PixelNet, regression, segmentation

THREATS = [Linf(0.03), L2(0.4)]


def slow_loss(logits, y, void, towards):
    """Eq. 5 to 7 pixel by pixel of one sample: cosine of softmax and one-hot label, times cross-entropy."""
    total, count = 0.0, 0
    classes, height, width = logits.shape
    for i in range(height):
        for j in range(width):
            if int(y[i, j]) == void:
                continue
            z, onehot = logits[:, i, j], F.one_hot(y[i, j], classes).to(logits.dtype)
            weight = F.cosine_similarity(z.softmax(0), onehot, dim=0).detach()
            total = total + (1 - weight if towards else weight) * F.cross_entropy(z[None], y[i, j][None])
            count += 1
    return total / max(count, 1)


def slow_values(p, y, towards):
    """The same for values (C, H, W) with two channels and more: cosine of two softmaxes, times the squared error."""
    total = 0.0
    for i in range(p.shape[1]):
        for j in range(p.shape[2]):
            a, b = p[:, i, j], y[:, i, j]
            weight = F.cosine_similarity(a.softmax(0), b.softmax(0), dim=0).detach()
            total = total + (1 - weight if towards else weight) * (a - b).square().mean()
    return total / (p.shape[1] * p.shape[2])


def slow_attack(model, x, loss, threat, steps, size, sign):
    """All iterates of one sample: alpha * sign(g) or alpha * g / |g|, the ball, the box."""
    adv, seen = x.clone(), []
    for _ in range(steps):
        seen.append(adv)
        leaf = adv[None].clone().requires_grad_()
        (g,) = torch.autograd.grad(loss(model.module(leaf)[0]), leaf)
        g = sign * g[0]
        move = size * (g.sign() if threat.norm == "linf" else g / g.norm())
        delta = adv + move - x
        if threat.norm == "linf":
            delta = delta.clamp(-threat.eps, threat.eps)
        else:
            delta = delta * min(1.0, threat.eps / float(delta.norm()))
        adv = (x + delta).clamp(0, 1)
    return [*seen, adv]


def worst(model, task, points, y, target=None):
    """The iterate that the search promises: of those with the best verdict, the first of the largest harm."""

    def key(point):
        outputs = model(point[None])
        if target is None:
            return bool(task.failed(outputs, y[None])), float(task.harm(outputs, y[None]))
        return not bool(task.failed(outputs, target[None])), -float(task.harm(outputs, target[None]))

    return max(points, key=key)


@pytest.mark.parametrize("towards", [False, True])
def test_the_loss_is_the_papers(towards):
    model, x, y = segmentation()
    logits = model(x).detach().requires_grad_()
    fast = cospgd_labels(logits, y, 255, towards=towards)
    slow = torch.stack([slow_loss(logits[i], y[i], 255, towards) for i in range(len(x))])
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad(v.sum(), logits, retain_graph=True)[0] for v in (fast, slow)]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-12)
    assert (grads[0][:, :, :2, :3] == 0).all()  # no label, no gradient


@pytest.mark.parametrize("towards", [False, True])
@pytest.mark.parametrize(
    "channels", [2, 3, 5]
)  # 5 is also the number of samples: where the original broadcasts wrongly
def test_the_loss_of_values_is_the_papers(channels, towards):
    model, x, y = regression(channels)
    values = model(x).detach().requires_grad_()
    fast = cospgd_values(values, y, towards=towards)
    slow = torch.stack([slow_values(values[i], y[i], towards) for i in range(len(x))])
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad(v.sum(), values, retain_graph=True)[0] for v in (fast, slow)]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
@pytest.mark.parametrize("targeted", [False, True])
def test_equals_the_paper_step_by_step(threat, targeted):
    model, x, y = segmentation()
    target = torch.where(y == 255, y, 1) if targeted else None
    found = CosPGD(threat=threat, steps=6, random_start=False)(model, x, y, target=target)
    for i in range(len(x)):
        label, sign = (target[i], -1) if targeted else (y[i], 1)

        def loss(logits, label=label):
            return slow_loss(logits, label, 255, targeted)

        points = slow_attack(model, x[i], loss, threat, 6, threat.eps / 3, sign)
        expected = worst(model, model.task, points, y[i], None if target is None else target[i])
        torch.testing.assert_close(found.adversarial[i], expected, rtol=0, atol=1e-9)
        torch.testing.assert_close(found.last[i], points[-1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
@pytest.mark.parametrize("targeted", [False, True])
def test_flow_equals_the_paper_step_by_step(threat, targeted):
    model, x, y = regression(2)
    target = y.flip(0) if targeted else None
    found = CosPGD(threat=threat, steps=5, random_start=False)(model, x, y, target=target)
    for i in range(len(x)):
        aim, sign = (target[i], -1) if targeted else (y[i], 1)

        def loss(p, aim=aim):
            return slow_values(p, aim, targeted)

        points = slow_attack(model, x[i], loss, threat, 5, threat.eps / 3, sign)
        torch.testing.assert_close(found.last[i], points[-1], rtol=0, atol=1e-9)


# -- the three defects of the published code (attacks on one channel, shapes, and what they lead to) -----------------


@pytest.mark.parametrize("targeted", [False, True])
def test_one_channel_differs_from_pgd_and_has_a_gradient(targeted):
    model, x, y = regression(1)
    target = y + 1.0 if targeted else None
    options = {"threat": Linf(0.03), "steps": 6, "step_size": 0.01, "random_start": False}
    cos, plain = (kind(**options)(model, x, y, target=target) for kind in (CosPGD, PGD))
    assert (cos.last != x).flatten(1).any(1).all()  # the original's gradient is exactly zero here
    assert (cos.last != plain.last).flatten(1).any(1).all()  # and untargeted the original is plain PGD
    error = [model.task.harm(model(p), y if target is None else target) for p in (x, cos.adversarial)]
    assert (error[1] < error[0]).all() if targeted else (error[1] > error[0]).all()


def test_one_channel_weighs_agreeing_pixels_most_in_any_unit():
    p, y = torch.tensor([[[[0.0, 1.0, 4.0]]]]), torch.zeros(1, 1, 1, 3)
    expected = torch.exp(-torch.tensor([[[0.0, 1.0, 4.0]]]) / (5 / 3))
    torch.testing.assert_close(agreement(p, y), expected)
    torch.testing.assert_close(agreement(1000 * p, y), expected)
    assert (agreement(y, y) == 1).all()  # a perfect answer: no division by zero


def test_maps_without_a_channel_are_maps_of_one():
    model, x, y = regression(1)
    values = model(x).detach()
    torch.testing.assert_close(cospgd_values(values[:, 0], y[:, 0]), cospgd_values(values, y))


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_a_sample_alone_and_in_a_batch_end_at_the_same_place(channels):
    for model, x, y in (segmentation(), regression(channels)):
        attack = CosPGD(threat=Linf(0.03), steps=4)
        ids = torch.tensor([3, 9, 4, 1, 7])
        whole = attack(model, x, y, ids=ids, seed=2)
        for i in range(len(x)):
            alone = attack(model, x[i : i + 1], y[i : i + 1], ids=ids[i : i + 1], seed=2)
            torch.testing.assert_close(alone.adversarial[0], whole.adversarial[i], rtol=0, atol=1e-9)
            torch.testing.assert_close(alone.loss[0], whole.loss[i])


# -- what is refused, what is promised ---------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["cospgd", "segpgd"])
def test_one_label_a_sample_is_refused_with_the_reason(loss):
    with pytest.raises(UsageError, match="one positive number, and every step is that of plain PGD"):
        LabelObjective(Classification(), torch.zeros(2, dtype=torch.long), loss=loss)


def test_values_without_pixels_are_refused():
    with pytest.raises(UsageError, match="weighs pixels"):
        LabelObjective(Regression(), torch.zeros(2, 3), loss="cospgd")(torch.zeros(2, 3))


def test_an_image_without_any_label_has_no_loss_and_no_gradient():
    logits = torch.randn(1, 4, 3, 3, requires_grad=True)
    value = cospgd_labels(logits, torch.full((1, 3, 3), 255), 255)
    (grad,) = torch.autograd.grad(value.sum(), logits)
    assert float(value.detach()) == 0.0 and (grad == 0).all()


class Watch(TorchDispatchMode):
    """The whole-number tensors that are made, by size."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.int64:
                self.largest = max(self.largest, tensor.numel())
        return out


def test_no_one_hot_tensor_is_made():
    model, x, y = segmentation(classes=21)
    objective = LabelObjective(model.task, y, loss="cospgd")
    with Watch() as seen:
        model.value_and_grad(x, objective)
        objective.reached(model(x))
    assert seen.largest <= y.numel()


@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
def test_breaks_more_pixels_than_its_start(threat):
    model, x, y = segmentation(fraction=0.9)
    found = CosPGD(threat=threat, steps=20)(model, x, y)
    assert (model.task.harm(model(found.adversarial), y) > model.task.harm(model(x), y)).all()


def test_step_defaults_are_the_published_ones():
    assert CosPGD().steps == 20
    assert CosPGD().size(Linf(0.03)) == pytest.approx(0.01)
    assert CosPGD(steps=1).size(Linf(0.03)) == 0.03
    assert CosPGD(step_size=0.2).size(L2(0.5)) == 0.2


def test_saturated_pixels_weigh_nothing_and_stay_finite():
    """Logits of 1e4: the weight of a wrong pixel underflows to 0, its loss is 1e4; half precision holds too."""
    net = PixelNet(4, torch.float32, scale=300.0)
    model, x = wrap(net, task=DenseClassification()), torch.rand(2, 3, 8, 8)
    y = (model(x).argmax(1).detach() + 1) % 4
    for dtype in (torch.float32, torch.bfloat16):
        value = cospgd_labels(model(x).detach().to(dtype), y, 255)
        assert value.isfinite().all()
