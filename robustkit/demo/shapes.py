"""Drawn scenes with a label for every pixel: circles, squares, triangles and striped patches on a textured ground.

A scene is a function of its number alone, so that nothing is stored or fetched. What a shape is cannot be told from its
colour, only from its outline or its pattern. Around each shape runs a border one pixel wide without a label, as in
PASCAL VOC. Scenes 0 to 255 are ``demo:shapes``, to judge on; the network was trained on others.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

SIZE = 48
VOID = 255
CLASSES = ("background", "circle", "square", "triangle", "stripes")
TEST = range(256)
TRAIN = range(10_000, 14_000)

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
_Y, _X = np.mgrid[0:SIZE, 0:SIZE] + 0.5


def scenes(numbers: Iterable[int] = TEST) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (N, 3, 48, 48) as uint8 and their labels (N, 48, 48), 255 where a pixel has none."""
    drawn = [scene(number) for number in numbers]
    return np.stack([image for image, _ in drawn]), np.stack([labels for _, labels in drawn])


def scene(number: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """One image (3, 48, 48) and its labels (48, 48)."""
    draw = np.random.RandomState(number)  # its stream is frozen for good, unlike that of newer generators
    image, labels = _ground(draw), np.zeros((SIZE, SIZE), dtype=np.int64)
    for _ in range(draw.randint(2, 5)):
        kind = draw.randint(1, len(CLASSES))
        mask, inside = _shape(kind, draw)
        image = np.where(mask, _paint(kind, image, draw), image)
        labels[mask] = VOID
        labels[inside] = kind
    image += draw.normal(0, 0.02, image.shape)
    return np.rint(image.clip(0, 1) * 255).astype(np.uint8), labels


def _ground(draw: np.random.RandomState) -> Floats:
    """A colour with soft spots: noise on a coarse grid, drawn out linearly."""
    coarse = draw.uniform(-0.18, 0.18, (3, 7, 7))
    at = np.linspace(0, 6, SIZE)
    low = np.minimum(at.astype(int), 5)
    share = at - low
    rows = coarse[:, low] * (1 - share)[:, None] + coarse[:, low + 1] * share[:, None]
    spots = rows[:, :, low] * (1 - share) + rows[:, :, low + 1] * share
    ground: Floats = draw.uniform(0.25, 0.75, (3, 1, 1)) + spots
    return ground


def _shape(kind: int, draw: np.random.RandomState) -> tuple[Mask, Mask]:
    """Where a shape lies with its border, and without it."""
    (x, y), radius, turn = draw.uniform(9, SIZE - 9, 2), draw.uniform(8, 13), draw.uniform(0, 2 * np.pi)
    u = np.cos(turn) * (_X - x) + np.sin(turn) * (_Y - y)
    v = -np.sin(turn) * (_X - x) + np.cos(turn) * (_Y - y)
    if kind == 1:
        depth = radius - np.hypot(u, v)
    elif kind == 3:
        sides = [np.cos(a) * u + np.sin(a) * v for a in 2 * np.pi / 3 * np.arange(3)]
        depth = 0.62 * radius - np.max(sides, axis=0)
    else:
        depth = 0.8 * radius - np.maximum(abs(u), abs(v))
    return depth > 0, depth > 1


def _paint(kind: int, image: Floats, draw: np.random.RandomState) -> Floats:
    """The surface of a shape: one colour, or two in stripes; colours keep away from what lies below."""
    below = image.mean((1, 2), keepdims=True)
    first = (below + draw.choice([-1, 1], (3, 1, 1)) * draw.uniform(0.18, 0.4, (3, 1, 1))) % 1.0
    if kind != 4:
        painted: Floats = first * np.ones_like(image)
        return painted
    turn, period = draw.uniform(0, np.pi), draw.uniform(3.5, 5.5)
    wave = np.sin(2 * np.pi / period * (np.cos(turn) * _X + np.sin(turn) * _Y)) > 0
    second = (first + 0.4) % 1.0
    striped: Floats = np.where(wave, first, second)
    return striped
