"""The example that certifies a published log again: printed radii are turned back into counts, and none is lost."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.special import ndtri
from scipy.stats import beta

EXAMPLE = Path(__file__).parents[2] / "examples" / "recertify_drs_log.py"
SIGMA = 0.36


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location(EXAMPLE.stem, EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
        spec.loader.exec_module(module)
    return module


def authors(left, right):
    """What their code prints for two counts of 1,000 draws."""
    a, b = (SIGMA * max(0.0, ndtri(beta.ppf(0.001, 100 * k, 100_000 - 100 * k + 1))) for k in (left, right))
    return float(f"{np.hypot(a, b):.3}")


def sound(left, right):
    a, b = (ndtri(beta.ppf(0.0005, k, 1000 - k + 1)) for k in (left, right))
    return SIGMA * (a + b) / 2**0.5


COUNTS = ((1000, 1000), (1000, 500), (987, 640), (300, 999), (760, 760), (420, 410), (1000, 999), (530, 515))


def test_every_printed_radius_is_found_and_worth_at_least_its_counts(example):
    logged = np.array([authors(*pair) for pair in COUNTS])
    fixed, again, known = example.recertify(example.Log(logged, np.ones(len(COUNTS), bool)), SIGMA)
    assert known.all()
    truth = np.array([sound(*pair) for pair in COUNTS])
    assert (again >= truth - 1e-9).all()  # the best counts that print it
    assert (fixed <= logged * 1.006).all() and (again < fixed).all()


def test_the_largest_radius_is_known_exactly(example):
    """1.94 is printed where all draws of both halves agree, and by no other counts."""
    assert authors(1000, 1000) == 1.94 > authors(1000, 999)
    again = example.recertify(example.Log(np.array([1.94]), np.ones(1, bool)), SIGMA)[1]
    assert again.tolist() == pytest.approx([sound(1000, 1000)], rel=1e-9)


def test_a_log_is_read_and_its_table_printed(example, tmp_path, capsys):
    log = tmp_path / "log"
    rows = [(3, 3, authors(1000, 1000)), (3, 5, authors(999, 900)), (1, 1, 0.0), (0, 0, authors(900, 900))]
    lines = [f"{i}\t{label}\t{predict}\t{radius:.3}\t1\t0:00:01" for i, (label, predict, radius) in enumerate(rows)]
    log.write_text("\nidx\tlabel\tpredict\tradius\tcorrect\ttime\n" + "\n".join(lines) + "\n")
    example.main([str(log)])
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].startswith("4 rows, 100.0 %")
    zero = next(line.split() for line in printed if line.strip().startswith("0 "))
    assert zero == ["0", "50.0", "%", "50.0", "%", "50.0", "%"]


def test_a_missing_or_strange_file_is_said(example, tmp_path):
    with pytest.raises(SystemExit, match="no log at"):
        example.main([str(tmp_path / "log")])
    (tmp_path / "log").write_text("time\n1\n")
    with pytest.raises(SystemExit, match="expected columns named label, predict and radius"):
        example.main([str(tmp_path / "log")])
    (tmp_path / "log").write_text("label predict radius\n")
    with pytest.raises(SystemExit, match="no such log"):
        example.main([str(tmp_path / "log")])
