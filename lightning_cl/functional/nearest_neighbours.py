"""Classification by the nearest neighbours among features."""

import torch
from torch import Tensor
from torch.nn.functional import normalize


def knn_predictions(
    features: Tensor, labels: Tensor, queries: Tensor | None = None, *, k: int = 20, chunk: int = 1024
) -> Tensor:
    """The class of most of the k nearest neighbours by cosine similarity, (M,) long; ties go to the more similar.

    Args:
        features: (N, D).
        labels: (N,) long.
        queries: (M, D); None for the features themselves, each without itself (leave-one-out).
        k: Neighbours; fewer if there are fewer.
        chunk: Queries at a time: memory is chunk * N.

    Raises:
        ValueError: For shapes that do not fit, k < 1, or no neighbours.

    Example:
        >>> features, labels = torch.tensor([[1.0, 0], [2, 0], [0, 1]]), torch.tensor([4, 4, 7])
        >>> knn_predictions(features, labels, torch.tensor([[3.0, 1]]), k=1)
        tensor([4])
    """
    if features.dim() != 2 or labels.shape != features.shape[:1]:
        raise ValueError(f"features {tuple(features.shape)}, labels {tuple(labels.shape)}; expected (N, D) and (N,)")
    alone = queries is None
    k = min(k, len(features) - alone)
    if k < 1:
        raise ValueError(f"k={k} neighbours among {len(features)} samples; expected at least one")
    classes, positions = labels.unique(return_inverse=True)
    known = normalize(features.float(), dim=1)
    asked = known if queries is None else normalize(queries.float(), dim=1)
    found = []
    for start in range(0, len(asked), chunk):
        similarity = asked[start : start + chunk] @ known.T
        if alone:
            rows = torch.arange(len(similarity))
            similarity[rows, rows + start] = -torch.inf
        nearest, indices = similarity.topk(k, dim=1)
        votes = torch.zeros(len(similarity), len(classes), dtype=torch.float64)
        # a vote is worth 1, and what the similarities add to a class stays below half a vote
        worth = 1 + (nearest.double() + 1) / (8 * k)
        votes.scatter_add_(1, positions[indices], worth)
        found.append(classes[votes.argmax(1)])
    return torch.cat(found)
