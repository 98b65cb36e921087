"""Gates: ``robust_accuracy=0.45`` asks that a figure of the results is at least so large.

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from robustkit.core.errors import UsageError, near
from robustkit.core.specs import parse_fraction

METRICS = {
    "robust_accuracy": "share of all samples that no attack broke",
    "robust_accuracy_low": "lower end of its 95 % interval",
    "miou": "mean intersection over union in the worst case, for segmentation",
    "pixel_accuracy": "share of labelled pixels that are right in the worst case, for segmentation",
    "clean_accuracy": "share of samples classified correctly without any attack",
    "clean_accuracy_low": "lower end of its 95 % interval",
}
_WHERE = {"robust_accuracy_low": ("interval", 0), "clean_accuracy_low": ("clean_interval", 0)}


def parse_gate(text: str) -> tuple[str, float]:
    """Metric and threshold of ``METRIC=VALUE``.

    >>> parse_gate("robust_accuracy=0.45")
    ('robust_accuracy', 0.45)

    Raises:
        UsageError: no ``=``, an unknown metric, a threshold outside [0, 1].
    """
    metric, equals, value = (part.strip() for part in text.partition("="))
    where = f"--fail-under {text}"
    if not equals:
        raise UsageError(
            "cannot read a gate",
            expected="METRIC=VALUE",
            got=repr(text),
            where=where,
            fix="Write for example robust_accuracy=0.45.",
        )
    if metric not in METRICS:
        raise UsageError("unknown metric in a gate", got=repr(metric), where=where, fix=near(metric, METRICS))
    threshold = parse_fraction(value, where)
    if not 0 <= threshold <= 1:
        raise UsageError(
            "a gate outside [0, 1]",
            expected="a share such as 0.45",
            got=value,
            where=where,
            fix="Accuracies are shares, not percentages: write 0.45 for 45 %.",
        )
    return metric, threshold


def judge(gates: Iterable[str], results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each gate says of the results: ``{"metric", "threshold", "value", "passed"}``, in the order given."""
    verdicts = []
    for metric, threshold in map(parse_gate, gates):
        value = _figure(metric, results)
        passed = value is not None and value >= threshold
        verdicts.append({"metric": metric, "threshold": threshold, "value": value, "passed": passed})
    return verdicts


def _figure(metric: str, results: Mapping[str, Any]) -> float | None:
    """The figure, or None where the run never came so far."""
    key, index = _WHERE.get(metric, (metric, None))
    dense = (results.get("dense") or {}).get("metrics", [])
    found: Any = results.get(key, next((m["robust"] for m in dense if m["key"] == key), None))
    value: float | None = found if index is None or found is None else found[index]
    return value
