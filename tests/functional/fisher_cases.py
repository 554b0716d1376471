"""Small networks of every kind, and the slow computation that the Fisher is compared with."""

import copy

import torch
import torch.nn.functional as F
from torch import nn


def oracle(module, data, labels):
    """One sample, one label and one backward pass at a time, in float64."""
    module = copy.deepcopy(module).double().eval()
    names, values = zip(*((n, v) for n, v in module.named_parameters() if v.requires_grad), strict=True)
    sums = {name: torch.zeros_like(value) for name, value in zip(names, values, strict=True)}
    x, y = data
    for i in range(len(y)):
        one = x[i : i + 1].double() if x.is_floating_point() else x[i : i + 1]
        p = module(one).detach().softmax(dim=1)[0]
        weights = {
            "exact": list(enumerate(p.tolist())),
            "empirical": [(int(y[i]), 1.0)],
            "predicted": [(int(p.argmax()), 1.0)],
        }[labels]
        for label, weight in weights:
            loss = F.cross_entropy(module(one), torch.tensor([label]))
            grads = torch.autograd.grad(loss, values, allow_unused=True)
            for name, grad in zip(names, grads, strict=True):
                if grad is not None:
                    sums[name] += weight * grad.square()
    return {name: value / len(y) for name, value in sums.items()}


def batches(data, size):
    return list(zip(*(part.split(size) for part in data), strict=True))


def made(build, shape, classes, n, integer=False):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = build()
        for buffer_name, buffer in module.named_buffers():
            if buffer_name.endswith("running_mean"):
                buffer.normal_()
            elif buffer_name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
        x = torch.randint(0, 9, (n, *shape)) if integer else torch.randn(n, *shape)
        return module, (x, torch.randint(0, classes, (n,)))


def mlp(n=10):
    return made(
        lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 5)),
        (6,),
        5,
        n,
    )


def convolutions(n=6):
    def build():
        return nn.Sequential(
            nn.Conv2d(4, 6, 3, padding=1, groups=2),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
            nn.Conv2d(6, 8, (3, 2), stride=(2, 1), padding="valid", dilation=(1, 2), bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 4, padding="same"),
            nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular", groups=8),
            nn.Conv2d(8, 4, (1, 3), padding=(0, 2), padding_mode="reflect"),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.BatchNorm1d(4),
            nn.Linear(4, 3),
        )

    return made(build, (4, 9, 8), 3, n)


def resnet18(n=3):
    from torchvision.models import resnet18 as build

    return made(lambda: build(num_classes=4), (3, 32, 32), 4, n)


class _Sequence(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.outer(torch.tanh(self.inner(x)).mean(dim=(1, 2)))


class _Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.norm, self.head = nn.Embedding(9, 6, padding_idx=0), nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.norm(self.embedding(x)).tanh().sum(1))


class _Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


class _Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.twice, self.head = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.twice(torch.tanh(self.twice(x)))))


class _Functional(nn.Module):
    """A weight used by its layer and once more outside of it."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(F.linear(torch.tanh(self.first(x)), self.first.weight))


class _SamplesSecond(nn.Module):
    """(T, N, features) inside, with T = N in the tests: the shape alone does not show it."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(3, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.inner(x.transpose(0, 1))).mean(0))


class _Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.utils.parametrizations.weight_norm(nn.Linear(5, 4))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.first(x)))


CASES = {
    "mlp": mlp,
    "convolutions": convolutions,
    "resnet18": resnet18,
    "sequence": lambda n=6: made(_Sequence, (3, 2, 4), 3, n),
    "token model": lambda n=6: made(_Tokens, (5,), 3, n, integer=True),
    "tied": lambda n=6: made(_Tied, (5,), 3, n),
    "called twice": lambda n=6: made(_Twice, (5,), 3, n),
    "functional use": lambda n=6: made(_Functional, (5,), 3, n),
    "samples second": lambda n=8: made(_SamplesSecond, (4, 3), 3, n),
    "weight norm": lambda n=6: made(_Normed, (5,), 3, n),
}
