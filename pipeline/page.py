"""Templates, drawings and colors of this project's HTML pages."""

import html
import io
from collections.abc import Callable
from typing import Any

import jinja2
import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, ACCENT, MUTED = "#1c2430", "#2f6fde", "#9aa7bd"
WARM = "#d9822b"
CELL_INK = "#14202e"
"""For text on a background that is light in every color scheme; svg replaces INK by the page's text color."""


_INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")


def environment() -> jinja2.Environment:
    """The templates of every report; only HTML is escaped."""
    result = jinja2.Environment(
        loader=jinja2.PackageLoader("sllmr.pipeline", "templates"),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined,
    )
    result.filters["number"] = lambda value: f"{value:,}"
    return result


def svg(draw: Callable[[Axes], None], width: float, height: float, title: str) -> str:
    """A drawing of `width` x `height` inches as an SVG element that stands inside a page.

    Its ground is transparent and its ink is the page's text color, so that it follows a dark scheme.

    Args:
        draw: draws on the axes.
        width, height: in inches.
        title: says what it shows to those who cannot see it.
    """
    # INK stands for the page's text color; a fixed salt keeps the ids, and so the page, the same for the same numbers.
    style: dict[Any, Any] = {"svg.hashsalt": "sllmr", "svg.fonttype": "none", "font.size": 9}
    style |= dict.fromkeys(_INKED, INK)
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor").replace("#000000", "currentColor")
    label = html.escape(title, quote=True)
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
