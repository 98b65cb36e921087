"""Gates compare a figure with a threshold, and a figure that is not there fails."""

import pytest

from robustkit.core.errors import UsageError
from robustkit.run.gates import judge, parse_gate

RESULTS = {"robust_accuracy": 0.6, "interval": [0.5, 0.7], "clean_accuracy": 0.9, "clean_interval": [0.8, 0.95]}


def test_gates_are_inclusive_and_in_order():
    found = judge(["robust_accuracy=0.6", "robust_accuracy_low=0.51", "clean_accuracy_low=0.8"], RESULTS)
    assert [gate["passed"] for gate in found] == [True, False, True]
    assert found[1] == {"metric": "robust_accuracy_low", "threshold": 0.51, "value": 0.5, "passed": False}


def test_what_was_not_measured_fails():
    (gate,) = judge(["robust_accuracy=0"], {"robust_accuracy": None})
    assert gate["value"] is None and not gate["passed"]
    (gate,) = judge(["robust_accuracy_low=0"], {"robust_accuracy": None, "interval": None})
    assert gate["value"] is None and not gate["passed"]


@pytest.mark.parametrize("text", ["", "robust_accuracy", "=0.5", "robust=0.5", "robust_accuracy=", "robust_accuracy=x",
                                  "robust_accuracy=-0.1", "robust_accuracy=1.1", "robust_accuracy=nan"])
def test_what_is_no_gate(text):
    with pytest.raises(UsageError):
        parse_gate(text)
