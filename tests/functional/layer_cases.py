"""One small network for every kind of layer that has a closed form, and for some that have none."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tests.functional.fisher_cases import made


class Pooled(nn.Module):
    """A layer on (N, C, ...), pooled to (N, C), and a linear head."""

    def __init__(self, body: nn.Module, features: int, act: Callable[..., Any] = torch.tanh) -> None:
        super().__init__()
        self.body, self.head, self.act = body, nn.Linear(features, 3), act

    def forward(self, x):
        y = self.body(x)
        return self.head(self.act(y).flatten(2).mean(2))


class Attending(nn.Module):
    """Attention of a learned query, or of the tokens among themselves, with everything that it can have."""

    def __init__(self, cross=False, mask=False, causal=False, **options) -> None:
        super().__init__()
        self.cross, self.mask, self.causal, self.first = cross, mask, causal, options.get("batch_first", False)
        self.attention = nn.MultiheadAttention(8, 2, **options)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        x = x if self.first else x.transpose(0, 1)
        padding = (torch.arange(x.shape[1 if self.first else 0]) > 2).expand(x.shape[0 if self.first else 1], -1)
        other = x[..., :5] if self.cross else x
        length = x.shape[1 if self.first else 0]
        causal = torch.ones(length, length, dtype=torch.bool).triu(1) if self.causal else None
        y, _ = self.attention(x, other, other, key_padding_mask=padding if self.mask else None, attn_mask=causal)
        return self.head(self.norm(y + x).mean(1 if self.first else 0))


class Vision(nn.Module):
    """Class token, position embedding, layer scale: parameters that belong to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(2, 6, 2, stride=2)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 6)), nn.Parameter(torch.randn(1, 5, 6))
        self.scale, self.shift = nn.Parameter(torch.rand(6)), nn.Parameter(torch.rand(6, 1, 1))
        self.projection = nn.Parameter(torch.randn(6, 6))
        self.inner, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = (self.patches(x) * self.shift).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        x += self.positions
        x = x + self.scale * torch.tanh(self.inner(x))
        return self.head((x @ self.projection).tanh()[:, 0])


class Positions(nn.Module):
    """Learned positions, looked up once for all samples; the sum is not padded."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(9, 6, padding_idx=0), nn.Embedding(7, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        position = torch.arange(x.shape[1]).unsqueeze(0)
        return self.head((self.tokens(x) + self.positions(position)).tanh().sum(1))


class Frames(nn.Module):
    """A convolution over the frames of each sample, as video models do: (N * T, C, H, W) inside."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x):
        y = self.norm(self.conv(x.flatten(0, 1))).tanh().mean((2, 3))
        return self.head(y.view(len(x), x.shape[1], -1).mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn, self.head = kind(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


class TiedLanguageModel(nn.Module):
    """The weight of the embedding is that of the head; logits at every position."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.inner = nn.Embedding(9, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, x):
        return self.head(torch.tanh(self.inner(self.tokens(x))))


def _convolution(kind, d, transposed=False, **options):
    def build():
        return Pooled(kind(4, 6, 3 if d < 3 else 2, **options), 6)

    return lambda n=5: made(build, (4, *(7, 6, 5)[:d]), 3, n)


def _normed(norm, shape):
    return lambda n=5: made(lambda: Pooled(norm(), shape[0], act=lambda y: (y + 0.1).sin() * y), shape, 3, n)


def _hf_conv1d():
    from transformers.pytorch_utils import Conv1D

    return nn.Sequential(Conv1D(6, 4), nn.Tanh(), Conv1D(3, 6))


def _attention(**options):
    return lambda n=5: made(lambda: Attending(**options), (4, 8), 3, n)


def _encoder(n=5):
    def build():
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1)
        return nn.Sequential(Swap(), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), Swap(), Head())

    return made(build, (4, 8), 3, n)


class Swap(nn.Module):
    def forward(self, x):
        return x.transpose(0, 1)


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(x.mean(1))


#: name -> (case, parameters that go sample by sample)
LAYERS: dict[str, tuple[Callable[..., Any], list[str]]] = {
    "conv1d": (_convolution(nn.Conv1d, 1, padding=2, dilation=2, groups=2), []),
    "conv1d, circular": (_convolution(nn.Conv1d, 1, padding=1, padding_mode="circular", stride=2), []),
    "conv2d, reflect": (_convolution(nn.Conv2d, 2, padding=(1, 2), padding_mode="reflect", groups=2), []),
    "conv3d": (_convolution(nn.Conv3d, 3, stride=(1, 2, 1), padding=1, groups=2), []),
    "conv3d, same": (_convolution(nn.Conv3d, 3, padding="same", dilation=(1, 2, 1)), []),
    "transposed conv1d": (_convolution(nn.ConvTranspose1d, 1, stride=2, padding=1, output_padding=1), []),
    "transposed conv2d": (_convolution(nn.ConvTranspose2d, 2, stride=(2, 1), dilation=(1, 2), groups=2), []),
    "transposed conv3d": (_convolution(nn.ConvTranspose3d, 3, stride=2, padding=1, bias=False), []),
    "one by one": (lambda n=5: made(lambda: Pooled(nn.Conv2d(4, 6, 1), 6), (4, 1, 1), 3, n), []),
    "strided to few": (lambda n=5: made(lambda: Pooled(nn.Conv2d(4, 6, 3, stride=3), 6), (4, 6, 6), 3, n), []),
    "layer norm": (_normed(lambda: nn.LayerNorm([6, 5]), (4, 6, 5)), []),
    "rms norm": (_normed(lambda: nn.RMSNorm(5), (4, 6, 5)), []),
    "group norm": (_normed(lambda: nn.GroupNorm(2, 4), (4, 6, 5)), []),
    "instance norm": (_normed(lambda: nn.InstanceNorm2d(4, affine=True), (4, 6, 5)), []),
    "instance norm, tracked": (
        _normed(lambda: nn.InstanceNorm1d(4, affine=True, track_running_stats=True), (4, 6)),
        [],
    ),
    "batch norm": (_normed(lambda: nn.BatchNorm3d(4), (4, 2, 3, 2)), []),
    "attention": (_attention(), []),
    "attention, batch first, padded": (_attention(batch_first=True, mask=True), []),
    "attention, causal": (_attention(batch_first=True, causal=True, bias=False), []),
    "attention, other keys": (_attention(cross=True, kdim=5, vdim=5), []),
    "attention, added keys": (
        _attention(add_bias_kv=True, add_zero_attn=True),
        ["attention.bias_k", "attention.bias_v"],
    ),
    "encoder": (_encoder, []),
    "plain parameters": (lambda n=6: made(Vision, (2, 4, 4), 3, n), []),
    "positions": (lambda n=6: made(Positions, (5,), 3, n, integer=True), []),
    "frames": (lambda n=4: made(Frames, (3, 2, 5, 5), 3, n), []),
    "hf conv1d": (lambda n=5: made(lambda: nn.Sequential(_hf_conv1d(), Last()), (4, 4), 3, n), []),
    "lstm": (
        lambda n=4: made(lambda: Recurrent(nn.LSTM), (5, 4), 3, n),
        [f"rnn.{kind}_{to}_l0" for kind in ("weight", "bias") for to in ("ih", "hh")],
    ),
    "gru": (
        lambda n=4: made(lambda: Recurrent(nn.GRU), (5, 4), 3, n),
        [f"rnn.{kind}_{to}_l0" for kind in ("weight", "bias") for to in ("ih", "hh")],
    ),
}


class Last(nn.Module):
    def forward(self, x):
        return x.tanh().mean(1)
