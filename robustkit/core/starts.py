"""Where the attacks of published training code begin."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from robustkit.core.lesson import Lesson

Start = Literal["uniform", "normal"]
START = (
    "where the attack begins: uniform (a uniform point of the ball) or normal (the input, plus 0.001 * N(0, 1) of the "
    "range of the inputs)"
)


def start_of(lesson: Lesson, kind: Start) -> Tensor:
    """The first point (N, *S) of an attack, inside the threat set.

    ``normal`` begins next to the input, as the authors' code of TRADES and MART does, whatever the radius: exactly at
    the input a divergence from the clean answers has no gradient.
    """
    x, model = lesson.x, lesson.model
    if kind == "uniform":
        return lesson.ball.start(x, model.bounds, lesson.draws)
    near = x + 0.001 * model.bounds.width * lesson.draws.normal(x)
    return lesson.ball.project(near, x, model.bounds)
