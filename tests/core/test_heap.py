"""Memory that is kept while a method works."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robustkit.core import heap
from robustkit.core.model import wrap


class Library:
    """Stands for glibc and remembers what it was told."""

    def __init__(self):
        self.told = []

    def mallopt(self, name, value):
        self.told.append((name, value))
        return 1

    def malloc_trim(self, pad):
        self.told.append("trim")
        return 1


@pytest.fixture
def library(monkeypatch):
    found = Library()
    monkeypatch.setattr(heap, "_glibc", lambda: (found.mallopt, found.malloc_trim))
    return found


def test_the_outermost_alone_sets_and_restores(library):
    with heap.kept():
        with heap.kept():
            assert library.told == list(heap.WITHIN)
        assert library.told == list(heap.WITHIN)
    assert library.told == [*heap.WITHIN, *heap.AFTER, "trim"]


def test_it_is_restored_after_an_error(library):
    with pytest.raises(KeyError), heap.kept():
        raise KeyError
    assert library.told[-1] == "trim" and heap._depth == 0


def test_methods_work_inside(library):
    with wrap(nn.Linear(2, 2)).frozen():
        assert library.told == list(heap.WITHIN)
    assert library.told[-1] == "trim"


def test_other_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(heap, "_glibc", lambda: None)
    with heap.kept():
        assert torch.ones(3).sum() == 3
    assert heap._depth == 0


@pytest.mark.skipif(heap._glibc() is None, reason="no glibc")
def test_the_library_takes_every_parameter():
    mallopt, _ = heap._glibc()
    with heap.kept():
        assert all(mallopt(name, value) == 1 for name, value in heap.WITHIN)
    assert all(mallopt(name, value) == 1 for name, value in heap.AFTER)
