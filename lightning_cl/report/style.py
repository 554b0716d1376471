"""How our plots look: one palette, one grid, and nothing that touches matplotlib's global state."""

import base64
import io
from typing import TYPE_CHECKING, Any

from .text import short_labels, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, GRID = "#1b2733", "#5b6b7b", "#dfe5ec"
# Okabe and Ito's palette without its yellow, which is too light for lines on white; told apart with any colour vision
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#333333")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (5, 1.5, 1.5, 1.5)))
_MARKERS = "osD^vPX"
NAIVE, JOINT = "#8a6d3b", "#1b2733"


def series(i: int) -> dict[str, Any]:
    """Line style of the i-th series; colour, marker and, beyond the palette, dashes differ."""
    turn = i // len(PALETTE)
    return {
        "color": PALETTE[i % len(PALETTE)],
        "linestyle": _DASHES[turn % len(_DASHES)],
        "marker": _MARKERS[(i + turn) % len(_MARKERS)],
    }


def figure(width: float = 5.8, height: float = 4.0) -> "Figure":
    """An empty figure in inches with its own Agg canvas."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fig = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(fig)
    return fig


def axes(fig: "Figure", title: str, x: str = "", y: str = "", grid: str = "y") -> "Axes":
    """Axes with our title, labels and light grid (``x``, ``y``, ``both`` or empty)."""
    ax = fig.add_subplot()
    ax.set_title(plain(title), loc="left", fontsize=11, fontweight="bold", color=INK, pad=9)
    ax.set_xlabel(plain(x), fontsize=9.5, color=SOFT)
    ax.set_ylabel(plain(y), fontsize=9.5, color=SOFT)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color("#b8c2cc")
    ax.tick_params(colors=SOFT, labelsize=9, length=3)
    if grid:
        ax.grid(axis=grid, color=GRID, linewidth=0.8)  # type: ignore[arg-type]
        ax.set_axisbelow(True)
    return ax


def plain(text: str, length: int = 60) -> str:
    """Text that matplotlib draws as it is: no mathtext, and not hidden from legends by a leading underscore."""
    text = shorten(text, length).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def task_ticks(ax: "Axes", names: list[str], which: str = "x", room: int = 62) -> None:
    """Name the tasks on an axis: names, rotated beyond ``room`` characters; of many, numbers at even steps."""
    count = len(names)
    axis = ax.xaxis if which == "x" else ax.yaxis
    if count > 12:
        step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 10**6) if count / step <= 11)
        positions = list(range(0, count, step))
        axis.set_ticks(positions, [str(i) for i in positions])
        return
    labels = [plain(label) for label in short_labels(names, 16)]
    axis.set_ticks(range(count), labels)
    if which == "x" and count * (2 + max(map(len, labels), default=0)) > room:
        for label in axis.get_ticklabels():
            label.set(rotation=35, ha="right", rotation_mode="anchor")


def ink_on(color: tuple[float, ...]) -> str:
    """Black or white, whichever has the higher contrast ratio on ``color`` (WCAG 2.1, relative luminance)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#ffffff" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "#000000"


def legend(ax: "Axes") -> None:
    """A legend below the axes, where no line can run through it."""
    fig: Any = ax.figure
    drawn, labels = ax.get_legend_handles_labels()
    if drawn:
        columns = max(1, min(5, 66 // (max(map(len, labels)) + 7)))
        fig.legend(
            *(drawn, labels), loc="outside lower center", ncols=columns, frameon=False, fontsize=9, labelcolor=INK,
            handlelength=2.6, columnspacing=1.4,
        )  # fmt: skip


def png(fig: "Figure") -> bytes:
    """The figure as PNG bytes, sharp on high-density screens and the same bytes every time."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=190, metadata={"Software": None})
    return buffer.getvalue()


def data_uri(image: bytes) -> str:
    """PNG bytes as the source of an ``<img>``."""
    return "data:image/png;base64," + base64.b64encode(image).decode("ascii")
