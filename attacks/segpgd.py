"""SegPGD: gradient ascent on right pixels first, then more and more on wrong ones (https://arxiv.org/abs/2207.12391).

In step t of T (from 0) right pixels weigh ``1 - lambda`` and wrong ones ``lambda = t / 2T``; steps are those of PGD.
Shapes: x, adv, grad (N, *S). Units: those of ``model.bounds``. Cost: that of PGD.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from robustkit.attacks.cospgd import PixelPGD
from robustkit.core.attack import ATTACKS
from robustkit.core.options import method


@ATTACKS.register("segpgd", paper="https://arxiv.org/abs/2207.12391")
@method
class SegPGD(PixelPGD):
    """PGD that weighs right pixels most at first and evenly with wrong ones at the end: for segmentation.

    >>> SegPGD(steps=10).loss
    'segpgd'
    """

    loss: Literal["segpgd"] = Field(default="segpgd", description="what is maximised")
