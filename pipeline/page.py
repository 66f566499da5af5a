"""What every HTML page of this project is made with: its templates, drawings and colours."""

import io
from collections.abc import Callable

import jinja2
import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, ACCENT, MUTED = "#1c2430", "#2f6fde", "#9aa7bd"
WARM = "#d9822b"


def environment() -> jinja2.Environment:
    """The templates of every report; only HTML is escaped."""
    result = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline", "templates"),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined,
    )
    result.filters["number"] = lambda value: f"{value:,}"
    return result


def svg(draw: Callable[[Axes], None], width: float, height: float) -> str:
    """A drawing of `width` x `height` inches as an SVG element that stands inside a page."""
    # A fixed salt keeps the ids, and so the page, the same for the same numbers.
    with matplotlib.rc_context({"svg.hashsalt": "sllmr", "svg.fonttype": "none", "font.size": 9, "text.color": INK}):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
