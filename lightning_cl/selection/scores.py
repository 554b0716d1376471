"""How good features are for a classification, in three ways."""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cl.functional.logme import logme
from lightning_cl.functional.nearest_neighbours import knn_predictions
from lightning_cl.streams.splitting import stratified_shares

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class Scores:
    """Of one candidate's features.

    Args:
        logme: Log evidence per sample.
        probe: Accuracy of a linear probe.
        knn: Accuracy of the nearest neighbours.
        strength: The C of the probe, inverse strength of its L2 penalty.
    """

    logme: float
    probe: float
    knn: float
    strength: float


def score_features(
    features: Tensor,
    labels: Tensor,
    validation: tuple[Tensor, Tensor] | None = None,
    *,
    k: int = 20,
    folds: int = 3,
    seed: int = 0,
) -> Scores:
    """LogME, linear probe and nearest neighbours of features (N, D) with labels (N,).

    The probe is a multinomial logistic regression on standardised features; the strength of its penalty is the best
    of five. Without validation data its accuracy is that of stratified cross-validation, and each sample is left out
    of its own neighbours. LogME takes the training data.

    Args:
        features, labels: Training data.
        validation: Features and labels to score on.
        k: Neighbours, by cosine similarity.
        folds: Of the cross-validation.
        seed: Of the folds.
    """
    if validation is not None:
        splits = [((features, labels), validation)]
    else:
        splits = [((features[a], labels[a]), (features[b], labels[b])) for a, b in _folds(labels, folds, seed)]
    right = torch.zeros(len(STRENGTHS))
    for (x, y), (asked, answers) in splits:
        right += torch.tensor([float((found == answers).sum()) for found in _probes(x, y, asked)])
    queries, truth = (None, labels) if validation is None else validation
    neighbours = knn_predictions(features, labels, queries, k=k)
    best = int(right.argmax())
    return Scores(
        logme(features, labels, intercept=True),
        float(right[best]) / len(truth),
        float((neighbours == truth).double().mean()),
        STRENGTHS[best],
    )


def _folds(labels: Tensor, folds: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    n = len(labels)
    folds = min(folds, n)
    sizes = [n // folds + (i < n % folds) for i in range(folds)]
    shares = stratified_shares(labels, sizes, seed, "select", "folds")
    return [(torch.cat([s for j, s in enumerate(shares) if j != i]), share) for i, share in enumerate(shares)]


def _probes(features: Tensor, labels: Tensor, asked: Tensor) -> list[Tensor]:
    """Predictions of ``asked`` by a probe of each strength, the strongest penalty first."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if len(labels.unique()) < 2:
        return [labels[:1].expand(len(asked)) for _ in STRENGTHS]
    mean, deviation = features.mean(0), features.std(0)
    # a feature that never changes stays what it is
    deviation = torch.where(deviation > 1e-6 * deviation.max(), deviation, torch.ones_like(deviation))
    x, z = ((part - mean) / deviation for part in (features, asked))
    model = LogisticRegression(max_iter=100, tol=1e-3, warm_start=True)
    found = []
    with warnings.catch_warnings():
        # the weakest penalties may need longer, which would not make them better
        warnings.simplefilter("ignore", ConvergenceWarning)
        for strength in STRENGTHS:
            model.set_params(C=strength).fit(x.numpy(), labels.numpy())
            found.append(torch.from_numpy(model.predict(z.numpy())).long())
    return found
