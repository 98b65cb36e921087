"""What a map explains: classes, outputs, masks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robustkit.core.errors import UsageError
from robustkit.core.model import wrap
from robustkit.core.target import Target, target_of

LOGITS = torch.tensor([[1.0, 3.0, 2.0], [0.0, -1.0, 4.0]])


def network(outputs, task="classification"):
    return wrap(lambda x: outputs[: len(x)] + 0 * x.flatten(1).sum(1).view(-1, *[1] * (outputs.ndim - 1)), task=task)


def test_logit_probability_and_margin_of_the_predicted_class():
    model, x = network(LOGITS), torch.zeros(2, 1, 2, 2)
    target, value = target_of(model, x, "predicted")
    assert target.classes.tolist() == [1, 2] and value.tolist() == [3.0, 4.0]
    assert target_of(model, x, 0)[1].tolist() == [1.0, 0.0]
    assert target_of(model, x, torch.tensor([2, 0]), "margin")[1].tolist() == [-1.0, -4.0]
    torch.testing.assert_close(target_of(model, x, 1, "probability")[1], LOGITS.softmax(1)[:, 1])


def test_a_function_of_outputs_and_classes():
    square = lambda outputs, classes: outputs.square().sum(1) + classes  # noqa: E731
    assert target_of(network(LOGITS), torch.zeros(2, 1), 1, square)[1].tolist() == [15.0, 18.0]
    with pytest.raises(UsageError, match="one number for every sample"):
        target_of(network(LOGITS), torch.zeros(2, 1), 1, lambda outputs, classes: outputs.sum())


def test_a_part_of_the_samples():
    target = Target(torch.tensor([1, 2, 0]), "logit", torch.ones(3, 2, 2, dtype=torch.bool))
    part = target.take(torch.tensor([2, 0, 0]))
    assert part.classes.tolist() == [0, 1, 1] and len(part.mask) == 3


def dense():
    outputs = torch.zeros(2, 3, 2, 2)
    outputs[0, 1] = torch.tensor([[5.0, 4.0], [3.0, -1.0]])
    outputs[1, 2] = 2.0
    return network(outputs, "segmentation"), outputs


def test_a_class_is_summed_over_the_pixels_that_are_given_it():
    model, _ = dense()
    target, value = target_of(model, torch.zeros(2, 1, 2, 2), "predicted")
    assert target.classes.tolist() == [1, 2] and value.tolist() == [12.0, 8.0]


def test_a_class_is_summed_over_a_mask():
    model, _ = dense()
    mask = torch.tensor([[False, True], [False, True]])
    assert target_of(model, torch.zeros(2, 1, 2, 2), 1, mask=mask)[1].tolist() == [3.0, 0.0]
    target, value = target_of(model, torch.zeros(2, 1, 2, 2), "predicted", "margin", mask)
    assert target.classes.tolist() == [0, 2] or target.classes.tolist() == [1, 2]
    assert value.tolist()[1] == 4.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3,), r"expected 0 \.\. 2"),
        ((-1,), r"got -1"),
        ((torch.tensor([0, 1, 2]),), "one for each of the 2 samples"),
        ((torch.tensor([0.0, 1.0]),), "float32"),
        ((0, "logit", torch.ones(2, 2)), "no mask"),
        ((0, lambda outputs, classes: outputs[:, 0], torch.ones(2, 2)), "does not fit|no use for a mask"),
    ],
)
def test_bad_targets_are_named(arguments, message):
    with pytest.raises(UsageError, match=message):
        target_of(network(LOGITS), torch.zeros(2, 1), *arguments)


@pytest.mark.parametrize(
    ("wanted", "mask", "message"),
    [
        (1, torch.ones(3, 3), r"\(3, 3\)"),
        (1, torch.zeros(2, 2), "marks no pixel"),
        (2, None, "class 2 in sample 0"),
    ],
)
def test_bad_masks_are_named(wanted, mask, message):
    with pytest.raises(UsageError, match=message):
        target_of(dense()[0], torch.zeros(2, 1, 2, 2), wanted, "logit", mask)


def test_values_to_predict_have_no_probability():
    model = network(torch.rand(2, 3, 2, 2), "regression")
    assert target_of(model, torch.zeros(2, 1), 1)[1].shape == (2,)
    with pytest.raises(UsageError, match="no probability"):
        target_of(model, torch.zeros(2, 1), 1, "probability")


def test_outputs_without_classes_need_a_function():
    model = wrap(nn.Flatten(0))
    with pytest.raises(UsageError, match="no classes"):
        target_of(model, torch.zeros(2, 1), 0)
