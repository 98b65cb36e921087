"""The result of a method: pixel maps, pictures, figures, fragments and files."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from PIL import Image

from robustkit.core import heat
from robustkit.core.attribution import Attribution, Note
from robustkit.core.errors import UsageError
from robustkit.core.types import Bounds, Cost


def made(shape=(2, 3, 8, 6), **changes):
    draws = torch.Generator().manual_seed(0)
    values = torch.randn(shape, generator=draws)
    fields = {
        "method": "smoothgrad",
        "settings": {"samples": 50},
        "x": torch.rand(shape, generator=draws),
        "values": values,
        "target": torch.tensor([1, 0]),
        "output": "logit",
        "value": torch.tensor([9.25, 3.0]),
        "signed": True,
        "cost": Cost(100, 50),
        "class_names": ("cat", "<b>$dog$</b>"),
    }
    return Attribution(**{**fields, **changes})


def regions():
    """A method that rates pixels: four regions, one of which speaks against the class."""
    means = torch.tensor([0.3, -0.9, 0.1, 0.6])
    blocks = torch.arange(4).view(2, 2).repeat_interleave(4, 0).repeat_interleave(3, 1).expand(2, 8, 6)
    return made(values=means[blocks][:, None], extras={"ranks": torch.tensor([2, 4, 3, 1])[blocks]})


def test_pixel_maps():
    a = made()
    assert torch.equal(a.pixel_map(), a.values.abs().sum(1))
    assert torch.equal(a.pixel_map(signed=True), a.values.sum(1))
    b = regions()
    assert torch.equal(b.pixel_map(), b.values[:, 0]) and b.regions and not a.regions


def test_what_a_map_is_worth():
    values = torch.tensor([[3.0, 4.0], [0.0, 2.0]]).view(2, 1, 1, 2)
    a = made(x=values, values=values, standard_error=0.1 * values, residual=torch.tensor([-1.0, 0.5]))
    assert a.relative_error.tolist() == pytest.approx([0.1, 0.1])
    assert a.relative_residual.tolist() == pytest.approx([1 / 8, 0.5 / 1.5])
    assert made().relative_error is None and made().relative_residual is None


def test_images_are_as_large_as_the_input_and_show_the_map():
    a = made()
    assert {a.to_image(1, mode).size for mode in ("heat", "overlay", "signed", "cutout")} == {(6, 8)}
    assert a.to_image() == heat.heat_image(a.values[0].abs().sum(0))
    assert a.to_image(-1, "signed") == heat.heat_image(a.values[1].sum(0), signed=True)
    cut, base = (np.asarray(image) for image in (a.to_image(0, "cutout", top=0.25), heat.picture(a.x[0])))
    kept = (cut == base).all(-1)
    assert kept.sum() == 12 and (kept == heat.top_mask(a.pixel_map()[0], 0.25)).all()


def test_a_cutout_of_regions_keeps_the_one_that_speaks_most_for_the_class():
    b = regions()
    kept = (np.asarray(b.to_image(0, "cutout", top=0.2)) == np.asarray(heat.picture(b.x[0]))).all(-1)
    assert kept[4:, 3:].all() and kept.sum() == 12


def test_only_significant_pixels_are_drawn():
    a = made()
    a = dataclasses.replace(a, standard_error=torch.full_like(a.values, 0.6))
    drawn = np.asarray(a.to_image(significant=True))[..., 3] > 0
    wanted = a.values[0].square().sum(0) > 4 * 3 * 0.36
    assert (drawn == wanted.numpy()).all() and 0 < drawn.sum() < drawn.size
    with pytest.raises(UsageError, match="no standard error"):
        made().to_image(significant=True)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda a: a.to_image(2), "no such sample: expected 0 to 1, got 2"),
        (lambda a: a.to_image(0, "heet"), "Did you mean heat?"),
        (lambda a: a.to_image(0, "cutout", top=0), "above 0, at most 1"),
        (lambda a: a.plot(limit=0), "limit of at least 1"),
        (lambda a: a.plot(scale="mine"), "image or shared"),
        (lambda a: made((2, 5)).to_image(), "Use plot"),
        (lambda a: made((2, 4, 8, 6)).to_image(0, "overlay"), "one or three channels"),
    ],
)
def test_what_cannot_be_drawn(call, words):
    with pytest.raises(UsageError, match=words):
        call(made())


def test_grey_inputs_and_other_bounds():
    a = made((2, 1, 8, 6))
    a = dataclasses.replace(a, x=2 * a.x - 1, bounds=Bounds(-1, 1))
    assert a.to_image(0, "cutout", top=1.0) == heat.picture((a.x[0] + 1) / 2)


def axes_of(figure):
    return [ax for ax in figure.axes if ax.images]


def test_a_figure_has_a_row_for_each_sample():
    a = made(residual=torch.tensor([-1.0, 0.5]))
    figure = a.plot()
    assert len(axes_of(figure)) == 6 and "each map" in figure.get_suptitle()
    assert axes_of(figure)[0].get_title() == "<b>$dog$</b>, logit 9.25"
    total = a.pixel_map()[0]
    assert axes_of(figure)[1].get_title() == f"{total.min():.3g} to {total.max():.3g}"
    assert "residual -1" in axes_of(figure)[2].get_title()
    assert len(axes_of(a.plot(limit=1))) == 3


def test_a_shared_scale_is_stated_and_dims_the_weaker_map():
    a = made()
    a = dataclasses.replace(a, values=a.values * torch.tensor([1.0, 0.1]).view(2, 1, 1, 1))
    own, shared = a.plot(), a.plot(scale="shared")
    assert "all maps" in shared.get_suptitle()
    weak = [np.asarray(axes_of(figure)[4].images[0].get_array())[..., :3].mean() for figure in (own, shared)]
    assert weak[1] < 0.5 * weak[0]


def test_inputs_that_are_no_images_are_drawn_as_bars():
    a = made((2, 30))
    figure = a.plot()
    assert len(figure.axes) == 2 and len(figure.axes[0].patches) == 20
    widths = sorted(abs(bar.get_width()) for bar in figure.axes[0].patches)
    assert widths == pytest.approx(sorted(a.values[0].abs().tolist())[-20:])
    assert "<img" not in a._repr_html_() and "cat, logit 3" in a._repr_html_()


def test_the_notebook_fragment_is_small_and_escapes_names():
    a = made((2, 3, 224, 224), notes=("a <note>",))
    html = a._repr_html_()
    assert html.count("<img") == 6 and 'src="data:image/jpeg' in html and "http" not in html
    assert "&lt;b&gt;$dog$" in html and "a &lt;note&gt;" in html and "<b>$dog" not in html
    assert len(html) < 200_000  # of white noise, the worst there is


def test_saving_and_loading(tmp_path):
    a = dataclasses.replace(regions(), residual=torch.tensor([0.1, math.nan]), notes=("large residual",))
    written = a.save(tmp_path / "maps")
    names = ["smoothgrad.npz", *(f"smoothgrad-0000{i}-{mode}.png" for i in (0, 1) for mode in ("heat", "overlay"))]
    assert [path.name for path in written] == names and all(path.is_file() for path in written)
    with Image.open(written[1]) as image:
        assert image.size == (6, 8)
    assert {p.name for p in (tmp_path / "maps").iterdir()} == set(names)  # nothing temporary is left
    b = Attribution.load(written[0])
    for field in dataclasses.fields(Attribution):
        before, after = getattr(a, field.name), getattr(b, field.name)
        if isinstance(before, torch.Tensor):
            assert torch.allclose(after, before, rtol=0, atol=0, equal_nan=True)
        elif field.name != "extras":
            assert after == before
    assert torch.equal(b.extras["ranks"], a.extras["ranks"]) and b.to_image(1) == a.to_image(1)


def test_a_named_file_without_pictures(tmp_path):
    assert made((2, 5)).save(tmp_path / "a.npz") == [tmp_path / "a.npz"]
    assert made().save(tmp_path / "b.npz", pictures=False) == [tmp_path / "b.npz"]


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_what_is_no_map_is_not_loaded(tmp_path, content):
    path = tmp_path / "x.npz"
    if content is None:
        np.savez(path, about=np.array("{}"), values=np.zeros(2))
    else:
        path.write_bytes(content)
    with pytest.raises(UsageError, match="an npz that save wrote"):
        Attribution.load(path)


def test_pickles_are_not_loaded(tmp_path):
    np.savez(tmp_path / "x.npz", about=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UsageError, match="cannot read the map"):
        Attribution.load(tmp_path / "x.npz")


def test_a_note_about_some_samples_is_no_note_of_the_others():
    a = made(notes=("layer bn2", Note("1 of 2 maps is black", torch.tensor([False, True]))))
    assert a.notes_of(0) == ["layer bn2"] and a.notes_of(1) == ["layer bn2", "1 of 2 maps is black"]
