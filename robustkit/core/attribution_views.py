"""Pictures, a figure and a fragment of HTML of an attribution; see :class:`robustkit.core.attribution.Attribution`."""

from __future__ import annotations

import base64
import io
from html import escape
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from robustkit.core import heat
from robustkit.core.errors import UsageError, near

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

    from robustkit.core.attribution import Attribution, Mode

SHOWN = 4
"""Most samples in a notebook."""
BARS = 20
"""Most inputs in a plot of bars: those with the largest values."""


def are_pictures(a: Attribution) -> bool:
    """Whether the inputs have one or three channels, a height and a width."""
    return a.x.ndim == 4 and a.x.shape[1] in (1, 3) and a.values.ndim == 4


def image(a: Attribution, index: int, mode: Mode, top: float, significant: bool) -> Image:
    """See :meth:`robustkit.core.attribution.Attribution.to_image`."""
    _check(a, index, mode)
    signed = mode == "signed"
    pixels = a.pixel_map(signed=True if signed else None)[index]
    keep = a.significant()[index] if significant else None
    if mode == "cutout":
        kept = heat.top_mask(pixels, top)
        return heat.cutout_image(_input(a, index), kept if keep is None else kept & heat.as_array(keep).astype(bool))
    if mode == "overlay":
        return heat.overlay_image(_input(a, index), pixels, keep=keep, regions=a.regions)
    return heat.heat_image(pixels, signed=signed, keep=keep)


def figure(a: Attribution, limit: int, scale: str, significant: bool) -> Figure:
    """See :meth:`robustkit.core.attribution.Attribution.plot`."""
    from matplotlib.figure import Figure

    if limit < 1 or scale not in ("image", "shared"):
        raise UsageError(
            "cannot plot that", expected="limit of at least 1, scale of image or shared", got=f"{limit}, {scale!r}"
        )
    rows = range(min(limit, len(a)))
    drawn = Figure(figsize=(8.4 if are_pictures(a) else 6.4, 0.5 + 2.75 * len(rows)), layout="constrained")
    if not are_pictures(a):
        _bars(drawn, a, rows)
        return drawn
    _title(drawn, f"{a.method}, colours end at the 99th percentile of {'each map' if scale == 'image' else 'all maps'}")
    pixels = a.pixel_map()
    maps = [heat.as_array(pixels[i]) for i in rows]
    shared = heat.value_range(np.concatenate(maps)) if scale == "shared" and maps else None
    for axes, i in zip(drawn.subplots(len(rows), 3, squeeze=False), rows, strict=True):
        keep = a.significant()[i] if significant else None
        _row(drawn, axes, a, i, maps[i], shared or heat.value_range(maps[i]), keep)
    return drawn


def _row(drawn: Figure, axes: Any, a: Attribution, i: int, pixels: Any, ends: heat.Range, keep: Any) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    base, limits = _input(a, i), (ends.low, ends.high)
    overlay = heat.overlay_image(base, pixels, limits=limits, keep=keep, regions=a.regions)
    for ax, shown in zip(axes, (base, heat.heat_image(pixels, limits=limits, keep=keep), overlay), strict=True):
        ax.imshow(shown, interpolation="nearest")
        ax.set_axis_off()
    axes[0].set_title(_headline(a, i), fontsize=9, parse_math=False)
    raw = heat.value_range(pixels)
    axes[1].set_title(f"{raw.minimum:.3g} to {raw.maximum:.3g}", fontsize=9)
    axes[2].set_title("\n".join(_quality(a, i)), fontsize=9)
    colours = ScalarMappable(Normalize(*limits), heat.MAGNITUDE)
    drawn.colorbar(colours, ax=axes[1], shrink=0.85, extend="max" if raw.maximum > ends.high else "neither")


def _bars(drawn: Figure, a: Attribution, rows: range) -> None:
    _title(drawn, f"{a.method}, the inputs with the largest values")
    for ax, i in zip(drawn.subplots(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
        names, values = _strongest(a, i)
        ax.barh(names, values, color=["#b2182b" if v > 0 else "#2166ac" for v in values])
        ax.axvline(0, color="0.5", lw=0.8)
        ax.invert_yaxis()
        ax.tick_params(labelsize=7)
        ax.set_title(", ".join([_headline(a, i), *_quality(a, i)]), fontsize=9, parse_math=False)


def html(a: Attribution) -> str:
    """A small fragment without any request: input, overlay, heat, class, what the map is worth."""
    rows = "".join(_cells(a, i) for i in range(min(len(a), SHOWN)))
    more = f"<p>{len(a) - SHOWN} more: .plot(limit={len(a)}), .save(folder)</p>" if len(a) > SHOWN else ""
    notes = "".join(f"<p>{escape(note)}</p>" for note in a.notes)
    settings = ", ".join(f"{name}={value}" for name, value in a.settings.items())
    cost = f"{a.cost.forwards:,} forwards, {a.cost.backwards:,} backwards"
    return (
        f'<div style="font-size:13px"><p><b>{escape(a.method)}</b> {escape(settings)}<br>{cost}</p>'
        f"<table><tbody>{rows}</tbody></table>{notes}{more}</div>"
    )


def _cells(a: Attribution, i: int) -> str:
    lines = [f"<b>{escape(_headline(a, i))}</b>", *_quality(a, i)]
    if not are_pictures(a):
        lines += [f"{escape(name)}: {value:.4g}" for name, value in zip(*_strongest(a, i), strict=True)][:5]
        return f'<tr><td style="text-align:left">{"<br>".join(lines)}</td></tr>'
    ends = heat.value_range(a.pixel_map()[i])
    lines.append(f"{ends.minimum:.3g} to {ends.maximum:.3g}, colours end at {ends.high:.3g}")
    shown = [_input(a, i), image(a, i, "overlay", 1.0, False), image(a, i, "heat", 1.0, False)]
    pictures = "".join(f'<td><img alt="" width="180" src="{_uri(p)}"></td>' for p in shown)
    return f'<tr>{pictures}<td style="text-align:left;vertical-align:top">{"<br>".join(lines)}</td></tr>'


def png(drawn: Image) -> bytes:
    """The picture as the bytes of a PNG file."""
    stream = io.BytesIO()
    drawn.save(stream, format="PNG")
    return stream.getvalue()


def _uri(drawn: Image) -> str:
    """The picture as a small JPEG: notebooks keep every output they ever showed."""
    drawn = drawn.convert("RGB")
    drawn.thumbnail((192, 192))
    stream = io.BytesIO()
    drawn.save(stream, format="JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _input(a: Attribution, index: int) -> Image:
    return heat.picture(a.x[index], a.bounds)


def _headline(a: Attribution, i: int) -> str:
    """The class and what was explained of it."""
    c = int(a.target[i])
    name = a.class_names[c] if a.class_names and 0 <= c < len(a.class_names) else f"class {c}"
    return f"{name}, {a.output} {float(a.value[i]):.4g}"


def _quality(a: Attribution, i: int) -> list[str]:
    found = []
    if a.residual is not None and a.relative_residual is not None:
        found.append(f"residual {float(a.residual[i]):.3g} ({100 * float(a.relative_residual[i]):.1f} %)")
    if a.relative_error is not None:
        found.append(f"standard error {100 * float(a.relative_error[i]):.1f} %")
    if "fixed_point_residual" in a.extras:
        found.append(f"fixed point {100 * float(a.extras['fixed_point_residual'][i]):.1f} % off")
    return found


def _strongest(a: Attribution, i: int) -> tuple[list[str], list[float]]:
    """Names (indices) and values of the inputs with the largest values, in the order of the input."""
    flat = heat.as_array(a.values[i].reshape(1, -1))[0]
    places = np.sort(np.argsort(-np.abs(flat), kind="stable")[:BARS])
    shape = tuple(a.values.shape[1:])
    names = [", ".join(str(int(k)) for k in np.unravel_index(place, shape)) for place in places]
    return names, flat[places].tolist()


def _title(drawn: Figure, text: str) -> None:
    drawn.suptitle(text, fontsize=10)


def _check(a: Attribution, index: int, mode: str) -> None:
    from robustkit.core.attribution import Mode

    if a.values.ndim != 4:
        raise UsageError(
            "the inputs are no images",
            expected="(N, C, H, W)",
            got=f"shape {tuple(a.values.shape)}",
            where="to_image",
            fix="Use plot(), which draws bars.",
        )
    if mode not in get_args(Mode):
        raise UsageError(
            "unknown mode", expected=", ".join(get_args(Mode)), got=repr(mode), fix=near(mode, get_args(Mode))
        )
    if not -len(a) <= index < len(a):
        raise UsageError("no such sample", expected=f"0 to {len(a) - 1}", got=str(index), where="index")
