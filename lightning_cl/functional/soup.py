"""Which models a soup is made of."""

from collections.abc import Callable, Sequence


def greedy_soup(
    scores: Sequence[float], score_of: Callable[[list[int]], float], higher_is_better: bool = True
) -> tuple[list[int], list[float]]:
    """Add models in the order of their own scores, each only if the mean of all gets no worse by it.

    Wortsman et al. 2022, arXiv:2203.05482, recipe 1. The result is never worse than the best model alone on the data
    that score.

    Args:
        scores: Of each model alone; of equal ones the first comes first.
        score_of: Score of the mean of some of them, by index.
        higher_is_better: Whether more is good.

    Returns:
        The indices that are in, in the order in which they came, and what the mean scored with each model when it was
        tried (by index; the first one's own score).

    Example:
        >>> greedy_soup([0.7, 0.9, 0.8], lambda chosen: 0.95 if len(chosen) == 2 else 0.5)
        ([1, 2], [0.5, 0.9, 0.95])
    """
    sign = 1 if higher_is_better else -1
    order = sorted(range(len(scores)), key=lambda i: -sign * scores[i])
    kept, best = order[:1], scores[order[0]]
    tried = list(scores)
    for i in order[1:]:
        tried[i] = score_of([*kept, i])
        if sign * tried[i] >= sign * best:
            kept, best = [*kept, i], tried[i]
    return kept, tried
