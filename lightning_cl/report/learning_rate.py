"""The curve of the learning-rate search."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import write_atomic
from .style import INK, axes, figure, legend, png, series
from .text import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "learning_rate"
CAPTION = "Smoothed training loss while the rate grows, before the first task. Line: the rate that the run used."


def learning_rate_figure(tuned: Any) -> "Figure | None":
    """Loss over learning rate, and the rate that was chosen; None if none was searched for."""
    curve = tuned.get("lr_curve") if isinstance(tuned, dict) else None
    if not curve:
        return None
    rates = [number(value) for value in curve["lr"]]
    losses = [number(value) for value in curve["loss"]]
    points = [(x, y) for x, y in zip(rates, losses, strict=False) if x and y is not None]
    fig = figure()
    ax = axes(fig, "Learning-rate search", "learning rate", "training loss")
    ax.plot([x for x, _ in points], [y for _, y in points], color=series(0)["color"], linewidth=2)
    ax.set_xscale("log")
    # the running mean is not settled at first, and what explodes at the end would press the rest flat
    settled = points[10:] or points
    low, high = min(y for _, y in settled), max(y for x, y in settled if x <= max(tuned["lr"], settled[0][0]))
    span = max(high - low, 1e-6)
    ax.set_ylim(low - 0.1 * span, high + 0.3 * span)
    ax.axvline(float(tuned["lr"]), color=INK, linewidth=1.4, linestyle=(0, (4, 3)), label=f"chosen: {tuned['lr']:.3g}")
    legend(ax)
    return fig


def save_learning_rate(tuned: dict[str, Any], folder: Path) -> None:
    """Write the figure as ``folder/learning_rate.png``."""
    fig = learning_rate_figure(tuned)
    if fig is not None:
        write_atomic(folder / f"{NAME}.png", png(fig))
