"""Maps against pixels that are known to matter, with what theory says of each: where they succeed and where not."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from robustkit.core.errors import UsageError
from robustkit.explain.gradient import Gradient, InputTimesGradient
from robustkit.explain.metrics.truth import pointing_game, relevance_mass, relevance_rank, truth_scores
from robustkit.explain.moreaugrad import MoreauGrad
from robustkit.explain.smoothgrad import SmoothGrad
from robustkit.planted import SCENARIOS, ground_truth, markdown, planted, registered

LOCAL = ["patch", "colour", "xor", "distractor"]
"""Scenarios whose network looks at the truth alone."""
METHODS = {
    "gradient": Gradient(),
    "input-times-gradient": InputTimesGradient(),
    "smoothgrad": SmoothGrad(samples=10),
    "moreaugrad": MoreauGrad(samples=8, tolerance=0.05),
    "moreaugrad-l1": MoreauGrad(penalty="l1", samples=8, tolerance=0.05),
    "moreaugrad-group": MoreauGrad(penalty="group", samples=8, group_size=3, tolerance=0.05),
}


@pytest.fixture(scope="module")
def table():
    rows = ground_truth(METHODS, n=4, size=24)
    assert not any(row.why for row in rows)
    return {(row.method, row.scenario): row.scores for row in rows}


# -- the scenarios are what they say ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("size", [16, 25, 32])
def test_the_network_never_errs_and_the_images_are_valid(name, size):
    case = planted(name, 40, size=size, seed=size)
    assert torch.equal(case.model(case.x).argmax(1), case.label)
    assert case.x.shape == (40, 3, size, size) and case.x.min() >= 0 and case.x.max() <= 1
    assert torch.equal(planted(name, 40, size=size, seed=size).x, case.x)
    assert not torch.equal(planted(name, 40, size=size, seed=size + 1).x, case.x)
    assert case.truth.flatten(1).any(1).all()
    if case.decoy is not None:
        assert not (case.truth & case.decoy).any()


@pytest.mark.parametrize("name", LOCAL)
def test_nothing_but_the_truth_changes_the_answer(name):
    """The definition of the truth: whatever grey noise is elsewhere, the logits stay."""
    case = planted(name, 10, size=24)
    other = 0.5 + 0.1 * (torch.rand(case.x.shape, generator=torch.Generator().manual_seed(9)) - 0.5)
    changed = torch.where(case.truth[:, None], case.x, other)
    assert torch.allclose(case.model(changed), case.model(case.x), atol=1e-4)
    gone = torch.where(case.truth[:, None], other, case.x)
    moved = (case.model(gone) - case.model(case.x)).abs().amax(1)
    assert (moved > 3).all()


def test_the_suppressor_says_nothing_by_itself():
    """Brightness there is the same for both classes; in the signal it is not; together they decide."""
    case = planted("suppressor", 400)
    mean = {
        name: (case.x.mean(1) * mask).flatten(1).sum(1) / 36
        for name, mask in (("signal", case.truth), ("drift", case.decoy))
    }

    def correlation(values):
        return float(torch.corrcoef(torch.stack([values, case.label.float()]))[0, 1])

    assert abs(correlation(mean["drift"])) < 0.15
    assert 0.8 < correlation(mean["signal"]) < 0.95
    assert correlation(mean["signal"] - mean["drift"]) > 0.99


def test_neither_square_of_the_xor_says_anything_by_itself():
    case = planted("xor", 400)
    for corner in (slice(0, 16), slice(16, 32)):
        bright = (case.x.mean(1) * case.truth)[:, corner, corner].flatten(1).sum(1) > 18
        share = (bright == case.label.bool()).float().mean()
        assert abs(float(share) - 0.5) < 0.1


# -- what theory says ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOCAL)
def test_of_a_network_that_looks_nowhere_else_gradients_lie_on_the_truth(table, name):
    assert table["gradient", name]["mass"] == pytest.approx(1, abs=1e-5)
    for method in METHODS:
        assert table[method, name]["mass"] > 0.95, method
        assert table[method, name]["pointing"] == 1, method
        if "moreaugrad-" not in method:  # sparse maps leave parts of it out on purpose
            assert table[method, name]["rank"] > 0.95, method


@pytest.mark.parametrize("name", ["colour", "distractor"])
def test_decoys_do_not_fool_gradients_but_do_fool_edges(table, name):
    assert all(table[method, name]["decoy"] < 0.02 for method in METHODS)
    assert table["sobel", name]["decoy"] > 0.1


def test_of_a_suppressor_every_gradient_fails_by_half(table):
    """The network gives it as much weight as the signal, although it says nothing: a truth no gradient can find."""
    for method in ("gradient", "smoothgrad", "moreaugrad"):
        assert table[method, "suppressor"]["mass"] == pytest.approx(0.5, abs=0.01), method
        assert table[method, "suppressor"]["decoy"] == pytest.approx(0.5, abs=0.01), method


@pytest.mark.parametrize("name", SCENARIOS)
def test_controls_do_not_find_the_truth(table, name):
    share = float(planted(name, 1, size=24).truth.float().mean())
    assert table["random", name]["mass"] == pytest.approx(share, rel=0.2)
    for control in ("random", "sobel", "centre", "segments"):
        assert table[control, name]["mass"] < 0.6 < table["gradient", "patch"]["mass"]


# -- the scores ------------------------------------------------------------------------------------------------------

TRUTH = torch.tensor([[[True, True, False], [False, False, False]]])


def slow_rank(flat, truth, count):
    """Ties broken in every possible way."""
    orders = torch.tensor(list(permutations(range(len(flat)))))
    top = orders.gather(1, flat[orders].argsort(dim=1, descending=True, stable=True)[:, :count])
    return float(truth[top].double().mean())


def test_scores_by_hand():
    maps = torch.tensor([[[4.0, 1.0, 3.0], [0.0, -5.0, 0.0]]])
    found = {name: float(score) for name, score in truth_scores(maps, TRUTH).items()}
    assert found == {"mass": 0.625, "rank": 0.5, "pointing": 1.0}


@pytest.mark.parametrize("values", [[1.0, 1, 1, 1, 0, 0], [0.0] * 6, [2.0, 1, 1, 1, 1, 0], [0.0, 1, 2, 2, 0, 0]])
def test_ties_count_as_a_random_choice_would(values):
    flat = torch.tensor(values)
    maps = flat.view(1, 2, 3)
    assert float(relevance_rank(maps, TRUTH)) == pytest.approx(slow_rank(flat, TRUTH.flatten(), 2))
    assert float(pointing_game(maps, TRUTH)) == pytest.approx(slow_rank(flat, TRUTH.flatten(), 1))


def test_a_map_of_zeros_scores_as_chance():
    assert torch.allclose(torch.cat(list(truth_scores(torch.zeros(1, 2, 3), TRUTH).values())), torch.tensor(1 / 3))


def test_scores_are_of_each_map_alone():
    maps = torch.rand(5, 2, 3, generator=torch.Generator().manual_seed(0))
    truth = torch.rand(5, 2, 3, generator=torch.Generator().manual_seed(1)) < 0.5
    truth[:, 0, 0] = True
    for score in (relevance_mass, relevance_rank, pointing_game):
        each = torch.cat([score(maps[i : i + 1], truth[i : i + 1]) for i in range(5)])
        assert torch.allclose(score(maps, truth), each)


# -- the table -------------------------------------------------------------------------------------------------------


def test_every_registered_method_is_scored():
    assert {"gradient", "smoothgrad", "integrated", "xrai", "moreaugrad", "gradcam"} <= set(registered())


def test_the_table_has_a_line_for_each_and_says_where_there_is_no_map():
    class Nothing(Gradient):
        pass

    rows = ground_truth({"gradient": Gradient(), "none": Nothing()}, ["patch", "suppressor"], n=2, size=16)
    lines = markdown(rows).splitlines()
    assert lines[0] == "| | patch | suppressor |"
    assert lines[2] == "| `gradient` | 1.00 | 0.50 |"
    assert lines[3] == "| `none` | - | - |"
    assert [line.split("|")[1].strip() for line in lines[4:]] == ["*random*", "*sobel*", "*centre*", "*segments*"]
    assert "not a registered" in next(row.why for row in rows if row.method == "none")
    assert "| `gradient` | - | 0.50 |" in markdown(rows, "decoy")


# -- bad input -------------------------------------------------------------------------------------------------------


def test_bad_input_is_named():
    with pytest.raises(UsageError, match=r"unknown scenario 'pach'.*patch"):
        planted("pach")
    with pytest.raises(UsageError, match=r"do not fit into such images.*at least 16 pixels.*size=15"):
        planted("patch", size=15)
    with pytest.raises(UsageError, match=r"unknown score 'mas'.*mass"):
        markdown([], "mas")
    with pytest.raises(UsageError, match="does not fit the maps"):
        relevance_mass(torch.rand(1, 3, 2), TRUTH)
    with pytest.raises(UsageError, match="an empty mask"):
        relevance_rank(torch.rand(1, 2, 3), torch.zeros_like(TRUTH))
    with pytest.raises(UsageError, match="NaN or infinity in maps"):
        pointing_game(torch.full((1, 2, 3), torch.nan), TRUTH)
