"""The metric between the weights before fine-tuning and those after it, one figure for each task."""

from typing import TYPE_CHECKING, Any

from .run import Run
from .style import INK, SOFT, axes, figure, legend, plain, series
from .text import number, short_labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_LINES = 6
_MOST_FIGURES = 12
CAPTION = (
    "Left: the weights before the fit. Right: the fine-tuned ones. Vertical line: the alpha that was kept; "
    "test data do not choose it."
)


def alpha_curves(run: Run) -> dict[str, "Figure"]:
    """A figure for each task whose curve was measured, by file name; of many tasks the last ones."""
    found = run.results.get("interpolation")
    figures: dict[str, Figure] = {}
    for name, tasks in found.items() if isinstance(found, dict) else ():
        drawn = [(task, curve) for task, curve in tasks.items() if len(curve.get("alphas") or []) > 1]
        for task, curve in drawn[-_MOST_FIGURES:]:
            key = "alpha_curve" if name == "wise_ft" else f"alpha_curve_{name}"
            figures[f"{key}_{task}"] = _figure(run, int(task), curve)
    return figures


def _figure(run: Run, task: int, curve: dict[str, Any]) -> "Figure":
    name = run.task_names[task] if task < len(run.task_names) else f"task {task}"
    fig = figure()
    ax = axes(fig, f"Interpolated weights after {name}{run.percent}", "alpha", run.metric)
    scale = 100 if run.higher_is_better else 1
    alphas = [float(alpha) for alpha in curve["alphas"]]

    def draw(values: list[Any], **look: Any) -> None:
        known = [number(value) for value in values]
        ax.plot(alphas, [float("nan") if value is None else scale * value for value in known], **look)

    kept = number(curve.get("alpha"))
    if kept is not None:
        ax.axvline(kept, color=SOFT, linewidth=1.4, linestyle=(0, (4, 3)), label=f"kept: {kept:g}", zorder=1)
    tests = curve.get("test") or {}
    labels = short_labels(list(tests), 18)
    if len(tests) > _MOST_LINES:
        columns = [[number(v) for v in values] for values in zip(*tests.values(), strict=True)]
        mean = [sum(c) / len(c) if None not in c else None for c in columns]  # type: ignore[arg-type]
        for values in tests.values():
            draw(values, color="#b8c2cc", linewidth=0.9)
        draw(
            mean, color=series(0)["color"], linewidth=2.2, marker="o", markersize=4, label=f"test, mean of {len(tests)}"
        )
    else:
        for i, values in enumerate(tests.values()):
            draw(values, linewidth=1.5, markersize=4, label=plain(f"test, {labels[i]}", 26), **series(i))
    if curve.get("validation"):
        draw(curve["validation"], color=INK, linewidth=2.4, marker="o", markersize=4.5, label="validation", zorder=5)
    ax.margins(x=0.03)
    legend(ax)
    return fig
