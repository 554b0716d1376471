"""Nearest neighbours against scikit-learn and a loop."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from lightning_cl.functional.nearest_neighbours import knn_predictions


def problem(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (n,), generator=rng)
    return torch.randn(3, 5, generator=rng)[labels] + torch.randn(n, 5, generator=rng), labels


def by_hand(features: torch.Tensor, labels: torch.Tensor, queries: torch.Tensor, k: int, alone: bool) -> list[int]:
    """One query at a time, float64; ties by the sum of similarities."""
    f, found = features.double().numpy(), []
    for i, q in enumerate(queries.double().numpy()):
        similarity = f @ q / np.linalg.norm(f, axis=1) / np.linalg.norm(q)
        if alone:
            similarity[i] = -np.inf
        nearest = np.argsort(-similarity)[:k]
        votes = {c: [s for s, j in zip(similarity[nearest], nearest, strict=True) if labels[j] == c] for c in range(3)}
        found.append(max(votes, key=lambda c: (len(votes[c]), sum(votes[c]))))
    return found


@pytest.mark.parametrize("k", [1, 4, 20])
def test_it_is_the_loop(k: int):
    features, labels = problem(70, seed=k)
    queries = problem(30, seed=k + 100)[0]
    assert knn_predictions(features, labels, queries, k=k).tolist() == by_hand(features, labels, queries, k, False)
    alone = knn_predictions(features, labels, k=k, chunk=16)
    assert alone.tolist() == by_hand(features, labels, features, k, True)


def test_it_is_scikit_learn_where_there_are_no_ties():
    features, labels = problem(200, seed=0)
    labels, queries = labels.clamp(max=1), problem(50, seed=1)[0]
    theirs = KNeighborsClassifier(7, metric="cosine", algorithm="brute").fit(features.numpy(), labels.numpy())
    assert knn_predictions(features, labels, queries, k=7).tolist() == theirs.predict(queries.numpy()).tolist()


def test_more_neighbours_than_samples_are_all_samples():
    features, labels = torch.eye(3), torch.tensor([0, 0, 1])
    assert knn_predictions(features, labels, k=20).tolist() == [0, 0, 0]


def test_what_it_refuses():
    with pytest.raises(ValueError, match=r"expected \(N, D\) and \(N,\)"):
        knn_predictions(torch.ones(4), torch.zeros(4))
    with pytest.raises(ValueError, match="k=0 neighbours among 1 samples"):
        knn_predictions(torch.ones(1, 2), torch.zeros(1, dtype=torch.long))
