"""Right pixels, the harm of a dense answer, and the search that keeps the worst point."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustkit.attacks.pgd import PGD
from robustkit.core.dense import right
from robustkit.core.graded import GradedSearch, search_for
from robustkit.core.keyed import Draws
from robustkit.core.objective import LabelObjective
from robustkit.core.search import Problem, Search
from robustkit.core.task import Classification, DenseClassification, Regression
from robustkit.core.threat import Linf
from tests.dense import segmentation


@given(st.integers(0, 10_000), st.integers(1, 6), st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
def test_right_is_argmax_also_where_logits_are_equal(seed, classes, dtype):
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, classes, 3, 4, generator=draw).to(dtype)
    y = torch.randint(-1, classes + 2, (2, 3, 4), generator=draw)
    assert torch.equal(right(logits, y), logits.argmax(1) == y)
    tied = logits.round()
    assert torch.equal(right(tied, y), tied.argmax(1) == y)


def test_harm_in_closed_form():
    logits = torch.zeros(1, 2, 1, 4)
    logits[0, 1] = torch.tensor([[1.0, 1.0, -1.0, -1.0]])
    y = torch.tensor([[[1, 0, 0, 255]]])
    task = DenseClassification()
    assert task.harm(logits, y).tolist() == pytest.approx([1 / 3])
    assert not task.failed(logits, y) and DenseClassification(fraction=0.3).failed(logits, y)
    assert Regression().harm(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 0.0]])).tolist() == [5.0]


def searches(loss="ce", n=5):
    model, x, y = segmentation(n=n)
    objective = LabelObjective(model.task, y, loss=loss)
    return model, Problem(x, objective, Linf(0.05), Draws(0, torch.arange(n), "test"))


def test_the_kind_of_search_follows_the_task():
    model, problem = searches()
    assert isinstance(search_for(model, problem), GradedSearch)
    assert not LabelObjective(Classification(), torch.zeros(1, dtype=torch.long)).graded
    assert LabelObjective(Regression(), torch.zeros(1, 1, 2, 2)).graded


def test_the_worst_point_stays_whatever_comes_later():
    model, problem = searches()
    search = search_for(model, problem)
    x = search.begin(0, random=False)
    g = torch.Generator().manual_seed(0)
    points = [(x + 0.05 * (2 * torch.rand(x.shape, generator=g, dtype=x.dtype) - 1)).clamp(0, 1) for _ in range(6)]
    with model.frozen(), torch.no_grad():
        for point in points:
            search.score(point)
        harms = torch.stack([problem.objective.harm(model(point)) for point in points])
    search.finish()
    for i, k in enumerate(harms.argmax(0).tolist()):
        assert torch.equal(search.adversarial[i], points[k][i])
    assert torch.equal(search.harm, harms.amax(0)) and torch.equal(search.last, points[-1])


def test_a_part_is_taken_over_where_it_is_worse():
    model, problem = searches()
    whole, index = search_for(model, problem), torch.tensor([1, 3, 4])
    part = search_for(model, problem.take(index))
    with model.frozen():
        for search, attack in ((whole, PGD(steps=2)), (part, PGD(steps=6))):
            attack.perturb(search)
            search.finish()
    before = whole.harm.clone()
    whole.absorb(index, part)
    assert torch.equal(whole.harm[index], torch.maximum(before[index], part.harm))
    assert torch.equal(whole.harm[[0, 2]], before[[0, 2]])
    assert whole.forwards.tolist() == [3, 3 + 7, 3, 3 + 7, 3 + 7]


def test_breaking_counts_for_more_than_harm():
    """For values the verdict is no function of the harm: a broken point with a smaller mean error stays."""

    class Echo(torch.nn.Module):
        def forward(self, x):
            return x

    from robustkit.core.model import wrap

    model = wrap(Echo(), task=Regression(tolerance=0.5))
    x = torch.zeros(1, 1, 2, 2)
    search = search_for(model, Problem(x, LabelObjective(model.task, x), Linf(1.0), Draws(0, torch.arange(1), "t")))
    search.begin(0, random=False)
    one = x.clone()
    one[0, 0, 0, 0] = 0.6
    with torch.no_grad():
        for point in (x + 0.4, one, x + 0.45):
            search.score(point)
    search.finish()
    assert search.found.all() and torch.equal(search.adversarial, one)


def test_other_tasks_are_searched_as_before():
    model, problem = searches()
    assert type(Search(model, problem)) is Search
