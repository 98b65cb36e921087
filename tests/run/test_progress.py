"""What is shown of a run's progress, and what is shown in any case."""

import io

import pytest
from rich.console import Console

from robustkit.run.progress import NoProgress, NotesOnly, PlainProgress, RichProgress, make_progress


def console():
    return Console(file=io.StringIO(), width=120)


def drive(progress):
    with progress:
        progress.start("clean", 10)
        progress.start("pgd:steps=[3]", 10)
        progress.advance("clean", 10)
        progress.advance("pgd:steps=[3]", 5, 0.5)
        progress.note("[bold]watch out")
        progress.advance("pgd:steps=[3]", 5, 0.25)


def test_plain_lines_are_few_and_end_with_the_last_figure():
    out = console()
    drive(PlainProgress(out, every=1000))
    assert out.file.getvalue().splitlines() == [
        "clean: 0/10", "pgd:steps=[3]: 0/10", "clean: 10/10", "[bold]watch out",
        "pgd:steps=[3]: 10/10, robust accuracy 25.0 %"]


def test_a_stage_of_one_step_is_begun_and_done():
    out = console()
    with PlainProgress(out) as progress:
        progress.start("preflight", 1)
        progress.advance("preflight", 1)
    assert out.file.getvalue().splitlines() == ["preflight: begun", "preflight: done"]


def test_plain_lines_come_every_few_seconds():
    out = console()
    drive(PlainProgress(out, every=0))
    assert "pgd:steps=[3]: 5/10, robust accuracy 50.0 %, " in out.file.getvalue()


def test_bars_show_names_as_they_are():
    out = console()
    drive(RichProgress(out))
    assert "pgd:steps=[3]" in out.file.getvalue() and "robust accuracy 25.0 %" in out.file.getvalue()
    assert "[bold]watch out" in out.file.getvalue()


def test_notes_are_shown_without_progress():
    out = console()
    drive(NotesOnly(out))
    assert out.file.getvalue() == "[bold]watch out\n"


def test_stages_of_unknown_size_do_no_harm():
    for kind in (lambda c: PlainProgress(c, every=0), RichProgress):
        shown = console()
        with kind(shown) as progress:
            progress.start("empty", 0)
            progress.advance("empty", 0)
        assert "empty" in shown.file.getvalue()


@pytest.mark.parametrize(("kind", "cls"), [("none", NoProgress), ("plain", PlainProgress), ("rich", RichProgress),
                                           (None, PlainProgress)])
def test_without_a_terminal_the_default_is_plain(kind, cls, monkeypatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert type(make_progress(kind)) is cls


def test_on_a_terminal_the_default_is_rich(monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", stream)
    assert type(make_progress(None)) is RichProgress


def test_samples_at_work_say_how_far_they_are():
    out = console()
    with PlainProgress(out, every=0) as progress:
        progress.start("moreaugrad", 4)
        progress.status("moreaugrad", "1,024 gradients")
    assert out.file.getvalue().splitlines()[-1] == "moreaugrad: 0/4, 1,024 gradients"
    quiet, bars = console(), console()
    with PlainProgress(quiet, every=1000) as progress:
        progress.start("moreaugrad", 4)
        progress.status("moreaugrad", "1,024 gradients")
    assert quiet.file.getvalue() == "moreaugrad: 0/4\n"
    with RichProgress(bars) as progress:
        progress.start("moreaugrad", 4)
        progress.status("moreaugrad", "1,024 gradients")
    assert "1,024 gradients" in bars.file.getvalue()
