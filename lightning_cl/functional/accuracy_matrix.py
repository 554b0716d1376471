"""Numbers derived from the accuracy matrix ``R``: ``R[i, j]`` is the test metric on task j after learning task i.

Every function takes ``R`` as a tensor or nested lists, ``(T, T)``, with NaN or None where nothing was evaluated, and
returns a float. The result is NaN where it is undefined or an entry that it needs is missing: a run of ``joint``
fills only the last row, and then only the average accuracy exists. Sequences of one task have no forgetting and no
transfer: NaN as well. Units are those of ``R`` (fractions here).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Matrix = Tensor | Sequence[Sequence[float | None]]
Vector = Tensor | Sequence[float | None]


def average_accuracy(matrix: Matrix) -> float:
    r"""Mean of the last row, :math:`\frac{1}{T} \sum_j R_{T-1, j}` (ACC of Lopez-Paz & Ranzato 2017).

    Example:
        >>> average_accuracy([[0.9, None], [0.5, 0.8]])
        0.65
    """
    return _mean(as_matrix(matrix)[-1])


def average_incremental_accuracy(matrix: Matrix) -> float:
    r"""Mean over tasks of the average accuracy so far, :math:`\frac{1}{T} \sum_i \frac{1}{i+1} \sum_{j \le i} R_{ij}`.

    (Rebuffi et al. 2017, iCaRL, with every task counted alike.)

    Example:
        >>> round(average_incremental_accuracy([[0.9, None], [0.5, 0.8]]), 6)
        0.775
    """
    rows = as_matrix(matrix)
    return _mean(torch.stack([rows[i, : i + 1].mean() for i in range(len(rows))]))


def forgetting(matrix: Matrix) -> float:
    r"""How far each earlier task fell from its best.

    .. math:: \frac{1}{T-1} \sum_{j<T-1} (\max_{i<T-1} R_{ij} - R_{T-1,j})

    (Chaudhry et al. 2018, "Riemannian Walk for Incremental Learning".) The rows before a task was learned count too
    when they were evaluated, as in the definition; negative when tasks have only improved.

    Example:
        >>> round(forgetting([[0.9, None], [0.5, 0.8]]), 6)
        0.4
    """
    rows = as_matrix(matrix)
    last = len(rows) - 1
    if last < 1:
        return math.nan
    drops = []
    for j in range(last):
        # from its own row on every value is needed; those above the diagonal are optional
        known = rows[:j, j][~rows[:j, j].isnan()]
        drops.append(torch.cat([known, rows[j:last, j]]).max() - rows[last, j])
    return _mean(torch.stack(drops))


def backward_transfer(matrix: Matrix) -> float:
    r"""What later tasks did to earlier ones, :math:`\frac{1}{T-1} \sum_{j<T-1} (R_{T-1,j} - R_{jj})`.

    (BWT of Lopez-Paz & Ranzato 2017, GEM, section 2.) Negative when there is forgetting.

    Example:
        >>> round(backward_transfer([[0.9, None], [0.5, 0.8]]), 6)
        -0.4
    """
    rows = as_matrix(matrix)
    return _mean((rows[-1] - rows.diagonal())[:-1])


def forward_transfer(matrix: Matrix, random_init: Vector | None) -> float:
    r"""What earlier tasks did for later ones, :math:`\frac{1}{T-1} \sum_{j \ge 1} (R_{j-1,j} - b_j)`.

    (FWT of Lopez-Paz & Ranzato 2017, GEM, section 2.) Needs the evaluation of the next task before it is learned.

    Args:
        matrix: ``R``.
        random_init: ``b``, ``(T,)``: the metric of the untrained model on each task; None gives NaN.

    Raises:
        ValueError: if ``random_init`` has not one entry per task.

    Example:
        >>> round(forward_transfer([[0.9, 0.6], [0.5, 0.8]], random_init=[0.5, 0.5]), 6)
        0.1
    """
    rows = as_matrix(matrix)
    if random_init is None:
        return math.nan
    baseline = as_vector(random_init)
    if len(baseline) != len(rows):
        raise ValueError(
            f"random_init of length {len(baseline)}; expected {len(rows)}, one per task. HINT: evaluate the untrained "
            "model on every task of the stream"
        )
    return _mean(rows.diagonal(1) - baseline[1:])


def learning_accuracy(matrix: Matrix) -> float:
    r"""Mean of the diagonal, :math:`\frac{1}{T} \sum_j R_{jj}`: how well each task is learned at its time (plasticity).

    (LA of Riemer et al. 2019, "Learning to learn without forgetting", MER.)

    Example:
        >>> round(learning_accuracy([[0.9, None], [0.5, 0.8]]), 6)
        0.85
    """
    return _mean(as_matrix(matrix).diagonal())


def min_accuracy(tasks: Sequence[int], accuracies: Sequence[Vector]) -> float:
    r"""min-ACC: mean over earlier tasks of the worst accuracy ever seen since the task was learned.

    .. math:: \frac{1}{k-1} \sum_{i < k} \min_{n > t_i} A(E_i, f_n)

    with ``n`` over the evaluations made after task i's training ended at ``t_i`` (De Lange, van de Ven & Tuytelaars
    2023, "Continual evaluation for lifelong learning: identifying the stability gap"). It differs from the
    accuracy matrix's own numbers when accuracy dips and recovers *within* a task.

    Args:
        tasks: ``(n,)`` the task being learned at each evaluation, 0-based.
        accuracies: n rows; entry i of a row is the metric on task i, NaN or None (or absent) where not evaluated.

    Returns:
        NaN when only one task was learned, or an earlier task was never evaluated since.

    Raises:
        ValueError: if the two differ in length.

    Example:
        >>> min_accuracy([0, 1, 1], [[0.9], [0.4, 0.2], [0.7, 0.8]])
        0.4
    """
    if len(tasks) != len(accuracies):
        raise ValueError(
            f"{len(tasks)} tasks and {len(accuracies)} rows of accuracies; expected as many. HINT: give the task that "
            "was being learned at each evaluation"
        )
    worst = [math.nan] * max(tasks, default=0)
    for task, row in zip(tasks, accuracies, strict=True):
        for i, value in enumerate(as_vector(row)[:task].tolist()):
            # fmin: NaN means not evaluated
            worst[i] = value if math.isnan(worst[i]) else min(worst[i], value) if not math.isnan(value) else worst[i]
    return _mean(as_vector(worst))


def as_matrix(matrix: Matrix) -> Tensor:
    """``R`` as a float64 tensor on the CPU, NaN where not evaluated.

    Raises:
        ValueError: if it is not square, or empty.
    """
    rows = matrix.detach().cpu().double() if isinstance(matrix, Tensor) else None
    if rows is None:
        lengths = {len(row) for row in matrix}
        rows = torch.stack([as_vector(row) for row in matrix]) if len(lengths) == 1 else torch.empty(len(matrix), 0)
    if rows.dim() != 2 or rows.shape[0] != rows.shape[1] or rows.numel() == 0:
        raise ValueError(
            f"accuracy matrix of shape {tuple(rows.shape)}; expected (T, T) with T >= 1. HINT: fill what was not "
            "evaluated with NaN or None"
        )
    return rows


def as_vector(values: Vector) -> Tensor:
    """Values as a float64 tensor on the CPU, NaN for None."""
    if isinstance(values, Tensor):
        return values.detach().cpu().double()
    return torch.tensor([math.nan if value is None else float(value) for value in values], dtype=torch.float64)


def _mean(values: Tensor) -> float:
    return float(values.mean())
