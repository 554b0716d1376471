"""The figures of one run."""

from typing import TYPE_CHECKING, Any

from .run import Run
from .style import GRID, INK, JOINT, NAIVE, SOFT, axes, figure, ink_on, legend, plain, series, task_ticks
from .text import number, short_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# below this many inches a cell's number cannot be read
_SMALLEST_CELL = 0.34
_MOST_NAMED = 8
_NAN = float("nan")


def run_figures(run: Run) -> dict[str, "Figure"]:
    """All figures for which the run has data, by file name without suffix."""
    figures = {"accuracy_matrix": accuracy_matrix(run)} if run.task_names else {}
    if sum(value is not None for value in run.average_curve) > 1:
        figures["accuracy_over_tasks"] = accuracy_over_tasks(run)
    if any(run.seconds(phase) is not None for phase in ("train", "consolidate", "evaluate")):
        figures["seconds_per_task"] = seconds_per_task(run)
    if run.results.get("continual_evaluation"):
        figures["continual_evaluation"] = continual_evaluation(run)
    return figures


def accuracy_matrix(run: Run) -> "Figure":
    """Heat map of the matrix, with numbers as long as they can be read; cells not evaluated stay empty."""
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    matrix, count = run.matrix, len(run.task_names)
    values = [[_scaled(run, value) for value in row] for row in matrix]
    known = [value for row in values for value in row if value == value]
    low, high = (0.0, 100.0) if run.higher_is_better else (min(known, default=0.0), max(known, default=1.0))
    # viridis: even in lightness, for any colour vision and in grey; the better end is always the bright one
    cmap = colormaps["viridis" if run.higher_is_better else "viridis_r"]
    norm = Normalize(low, high if high > low else low + 1)
    fig = figure(5.8, 4.7)
    ax = axes(fig, f"{run.metric.capitalize()} matrix{run.percent}", "tested on", "after learning", grid="")
    ax.set_facecolor("#f3f5f8")
    image = ax.imshow(values, cmap=cmap, norm=norm, aspect="equal", interpolation="nearest")
    cell = 3.7 / max(count, 1)
    if cell >= _SMALLEST_CELL:
        size = max(6.5, min(12.0, 15.0 * cell))
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                if value == value:
                    text = run.show(matrix[i][j], 1 if cell > 0.45 else 0)
                    ax.text(j, i, text, ha="center", va="center", fontsize=size, color=ink_on(cmap(norm(value))))
        ax.set_xticks([x - 0.5 for x in range(1, count)], minor=True)
        ax.set_yticks([y - 0.5 for y in range(1, count)], minor=True)
        ax.grid(which="minor", color="white", linewidth=1.5)
        ax.tick_params(which="minor", length=0)
    task_ticks(ax, run.task_names, "x", room=48)
    task_ticks(ax, run.task_names, "y")
    for spine in ax.spines.values():
        spine.set_visible(False)
    bar = fig.colorbar(image, ax=ax, shrink=0.8, pad=0.03)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=SOFT, labelsize=8.5, length=3)
    return fig


def accuracy_over_tasks(run: Run) -> "Figure":
    """Each task's metric after every task from its own on, their average, and the bounds where they are known."""
    count = len(run.task_names)
    fig = figure(5.8, 4.7)
    ax = axes(fig, f"{run.metric.capitalize()} over the stream{run.percent}", "after learning")
    colors, labels = _task_colors(count), short_labels(run.task_names, 14)
    for j in range(count):
        line = [_scaled(run, run.matrix[i][j]) if i >= j else _NAN for i in range(count)]
        if not any(value == value for value in line):
            continue
        many = count > _MOST_NAMED
        ax.plot(
            *(range(count), line), color=colors[j], linewidth=1.0 if many else 1.4, alpha=0.75,
            marker="" if count > 15 else "o", markersize=3.5, label=None if many else plain(labels[j]),
        )  # fmt: skip
    average = [_scaled(run, value) for value in run.average_curve]
    marker = "o" if count <= 15 else ""
    ax.plot(range(count), average, color=INK, linewidth=2.6, marker=marker, markersize=5, label="average", zorder=5)
    _references(ax, run)
    if run.higher_is_better:
        ax.set_ylim(-3, 103)
    ax.margins(x=0.03)
    task_ticks(ax, run.task_names)
    if count > _MOST_NAMED:
        _task_colorbar(fig, ax, count)
    legend(ax)
    return fig


def _references(ax: "Axes", run: Run) -> None:
    for name, reference in run.references.items():
        value = _scaled(run, reference.average_accuracy)
        if value != value:
            continue
        if name == "naive" and sum(v is not None for v in reference.average_curve) > 1:
            curve = [_scaled(run, v) for v in reference.average_curve]
            ax.plot(
                range(len(curve)), curve, color=NAIVE, linewidth=1.8, linestyle=(0, (2, 1.5)), label="naive, average"
            )
        else:
            ax.axhline(value, color=JOINT, linewidth=1.3, linestyle=(0, (6, 3)), label=plain(f"{name}, final", 20))


def seconds_per_task(run: Run) -> "Figure":
    """Stacked bars of the time each task took."""
    tasks = run.results.get("per_task") or []
    names = [str(task.get("name", f"task {i}")) for i, task in enumerate(tasks)]
    fig = figure()
    ax = axes(fig, "Time per task (seconds)")
    bottom = [0.0] * len(tasks)
    for i, phase in enumerate(("train", "consolidate", "evaluate")):
        seconds = [number((task.get("seconds") or {}).get(phase)) or 0.0 for task in tasks]
        if any(seconds):
            ax.bar(
                *(range(len(tasks)), seconds), bottom=bottom, width=0.62 if len(tasks) < 20 else 0.85,
                color=(series(0)["color"], series(4)["color"], "#9aa7b4")[i], label=phase,
            )  # fmt: skip
        bottom = [a + b for a, b in zip(bottom, seconds, strict=True)]
    if len(tasks) < 4:
        ax.set_xlim(-1, len(tasks))
    task_ticks(ax, names)
    legend(ax)
    return fig


def continual_evaluation(run: Run) -> "Figure":
    """Each task's metric while learning, every few steps; its dips at task changes are the stability gap."""
    count = len(run.task_names)
    steps, values, changes = _continual(run.results.get("continual_evaluation") or [])
    fig = figure()
    ax = axes(fig, f"{run.metric.capitalize()} while learning{run.percent}", "training step")
    for change in changes:
        ax.axvline(change, color=GRID, linewidth=1.6, zorder=0)
    colors, labels = _task_colors(count), short_labels(run.task_names, 14)
    for j in range(count):
        line = [_scaled(run, number(row[j])) if j < len(row) else _NAN for row in values]
        if any(value == value for value in line):
            name = plain(labels[j]) if count <= _MOST_NAMED else None
            ax.plot(steps, line, color=colors[j], linewidth=1.3, label=name, marker="o" if len(steps) < 3 else "")
    if run.higher_is_better:
        ax.set_ylim(-3, 103)
    if count > _MOST_NAMED:
        _task_colorbar(fig, ax, count)
    legend(ax)
    return fig


def _continual(points: list[dict[str, Any]]) -> tuple[list[float], list[list[Any]], list[float]]:
    """Steps that only grow (a trainer may count anew in every task), values, and the steps at which tasks change."""
    steps: list[float] = []
    values, changes, offset, before = [], [], 0.0, None
    for point in points:
        step = (number(point.get("step")) or 0.0) + offset
        if steps and point.get("task") != before:
            if step < steps[-1]:
                step, offset = step - offset + steps[-1], steps[-1]
            changes.append(steps[-1])
        steps.append(step)
        values.append(list(point.get("accuracy") or []))
        before = point.get("task")
    return steps, values, changes


def _task_colors(count: int) -> list[tuple[float, ...]]:
    from matplotlib import colormaps

    # the lightest part of viridis cannot be seen on white
    return [colormaps["viridis"](0.82 * j / max(count - 1, 1)) for j in range(count)]


def _task_colorbar(fig: "Figure", ax: "Axes", count: int) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    scale = ScalarMappable(Normalize(-0.5, count - 0.5), ListedColormap(_task_colors(count)))
    bar = fig.colorbar(scale, ax=ax, shrink=0.8, pad=0.02)
    bar.set_label("task", fontsize=9, color=SOFT)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=SOFT, labelsize=8.5, length=3)
    bar.set_ticks([0, (count - 1) // 2, count - 1])


def _scaled(run: Run, value: float | None) -> float:
    return _NAN if value is None else 100 * value if run.higher_is_better else value
