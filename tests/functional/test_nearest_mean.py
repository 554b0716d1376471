"""Nearest-mean classification against plain loops in float64."""

import math

import torch

from lightning_cl.functional import class_means, nearest_mean_scores


def unit(vector: list[float]) -> list[float]:
    length = math.sqrt(sum(v * v for v in vector))
    return [v / length for v in vector]


def test_means_and_scores_equal_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 4, (40,), generator=generator)
    labels[labels == 2] = 3  # a class without samples
    means = class_means(features, labels, 4)
    loop = {}
    for c in (0, 1, 3):
        rows = [unit(f.tolist()) for f, y in zip(features, labels, strict=True) if int(y) == c]
        loop[c] = unit([sum(column) / len(rows) for column in zip(*rows, strict=True)])
        torch.testing.assert_close(means[c], torch.tensor(loop[c], dtype=torch.float64))
    assert not means[2].any()
    queries = torch.randn(30, 5, generator=generator, dtype=torch.float64)
    scores = nearest_mean_scores(queries, means)
    for query, row in zip(queries, scores, strict=True):
        distances = {c: sum((a - b) ** 2 for a, b in zip(unit(query.tolist()), loop[c], strict=True)) for c in loop}
        for c, distance in distances.items():
            assert abs(float(row[c]) + distance) < 1e-12
        assert int(row.argmax()) == min(distances, key=lambda c: distances[c])
        assert float(row[2]) == -5


def test_the_length_of_a_feature_is_no_matter():
    features = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    means = class_means(features, torch.tensor([0, 1]), 2)
    torch.testing.assert_close(class_means(7 * features, torch.tensor([0, 1]), 2), means)
    torch.testing.assert_close(nearest_mean_scores(features, means), nearest_mean_scores(9 * features, means))
    assert nearest_mean_scores(torch.zeros(1, 2), means).isfinite().all()
