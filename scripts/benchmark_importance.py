"""What importances cost and how exact they are: the subject ``importance`` of benchmark.py."""

import copy
import functools
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

Row = dict[str, Any]
Batches = list[Any]


def mlp() -> nn.Module:
    """784-400-400-10."""
    return nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 10))


def bert(layers: int = 2, **sizes: int) -> nn.Module:
    """A BERT classifier of two classes with random weights."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(num_hidden_layers=layers, hidden_dropout_prob=0.0, num_labels=2, **sizes)
    return BertForSequenceClassification(config)


def tokens(n: int, length: int, vocabulary: int, padded: bool) -> dict[str, torch.Tensor]:
    """A batch as a tokenizer gives it."""
    ids = torch.randint(1, vocabulary, (n, length))
    mask = torch.ones(n, length, dtype=torch.long)
    if padded:
        for i in range(n):
            mask[i, length - i % (length // 2) :] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(n) % 2}


def logits_of(module: nn.Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of a pair or of a tokenizer's batch."""
    if isinstance(batch, dict):
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        return module(**inputs).logits, batch["labels"]
    return module(batch[0]), batch[1]


# cost ------------------------------------------------------------------------------------------------------------


def plain(module: nn.Module, batches: Batches) -> float:
    """CPU seconds of one forward and backward pass."""
    start = time.process_time()
    for batch in batches:
        logits, labels = logits_of(module, batch)
        F.cross_entropy(logits, labels).backward()
        module.zero_grad()
    return time.process_time() - start


def fisher(module: nn.Module, batches: Batches, labels: str) -> float:
    """CPU seconds of the diagonal Fisher."""
    from lightning_cl.functional import diagonal_fisher

    start = time.process_time()
    diagonal_fisher(module, batches, labels=labels, logits_fn=logits_of)
    return time.process_time() - start


def loop(module: nn.Module, batches: Batches, labels: str, n: int) -> float:
    """CPU seconds of a loop over samples one by one, as public code has it; n samples, scaled up to all."""
    parameters = list(module.parameters())
    sums = [torch.zeros_like(p) for p in parameters]
    x, y = (torch.cat(part)[:n] for part in zip(*batches, strict=True))
    total = sum(len(batch[1]) for batch in batches)
    start = time.process_time()
    for i in range(n):
        score = module(x[i : i + 1]).log_softmax(1)[0]
        wanted = [int(y[i])] if labels == "empirical" else range(len(score))
        for c in wanted:
            weight = 1.0 if labels == "empirical" else score[c].detach().exp()
            for s, g in zip(sums, torch.autograd.grad(score[c], parameters, retain_graph=True), strict=True):
                s += weight * g**2
    return (time.process_time() - start) * total / n


def costs(repeats: int, alternating: Callable[..., Any], row: Callable[..., Row]) -> list[Row]:
    """Ratios to one plain pass, and to the loop."""
    import torchvision

    torch.manual_seed(0)
    pairs = [(torch.rand(128, 784), torch.randint(0, 10, (128,))) for _ in range(94)]
    images = [(torch.rand(64, 3, 32, 32), torch.randint(0, 10, (64,))) for _ in range(8)]
    texts = [tokens(8, 128, 30522, padded=False) for _ in range(8)]
    resnet = torchvision.models.resnet18(num_classes=10)
    cases: list[tuple[str, nn.Module, Batches, str, float]] = [
        ("MLP 784-400-400-10, empirical", mlp(), pairs, "empirical", 1.1),
        ("MLP 784-400-400-10, exact", mlp(), pairs, "exact", 2.8),
        ("ResNet-18 at 32x32, empirical", resnet, images, "empirical", 2.5),
        ("ResNet-18 at 32x32, exact (10 classes)", resnet, images, "exact", float("nan")),
        ("BERT of 2 layers, 128 tokens, empirical", bert(), texts, "empirical", 2.5),
    ]
    rows = []
    for name, module, batches, labels, bar in cases:
        module.eval()
        ours = functools.partial(fisher, module, batches, labels)
        a, b = alternating(ours, functools.partial(plain, module, batches), repeats)
        entry = row(f"Fisher: {name}", a, b, "CPU s", "one plain forward and backward pass, same batches")
        entry |= {"bar": bar, "extra MiB": extra_memory(module, batches, labels)}
        rows.append(entry)
    for labels, n, bar in (("empirical", 400, 20.0), ("exact", 60, 60.0)):
        module = mlp().eval()
        slow = functools.partial(loop, module, pairs, labels, n)
        b, a = alternating(slow, functools.partial(fisher, module, pairs, labels), repeats)
        entry = row(f"loop over samples: MLP, {labels}", b, a, "CPU s", "our Fisher of the same samples")
        rows.append(entry | {"bar": bar})
    return rows


def extra_memory(module: nn.Module, batches: Batches, labels: str) -> float:
    """MiB that the Fisher holds at its peak beyond what one plain pass does; needs Linux."""
    plain(module, batches[:1])
    before = _peak(lambda: plain(module, batches[:1]))
    return round(_peak(lambda: fisher(module, batches[:1], labels)) - before, 1)


def _peak(run: Callable[[], Any]) -> float:
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # forget the highest resident set so far
    except OSError:
        return float("nan")
    run()
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024


# agreement -------------------------------------------------------------------------------------------------------


class SmallConv(nn.Sequential):
    """Convolutions with groups, and batch norm on running statistics."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, groups=4),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            nn.Conv2d(16, 16, 3, groups=16, bias=False),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(64, 10),
        )


class LanguageModel(nn.Module):
    """Embedding and head share their weight; causal attention by torch's own layer."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(50, 32), nn.Parameter(0.1 * torch.randn(1, 12, 32))
        self.block = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(32, 50, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of the next token at every position."""
        causal = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=self.positions.dtype)
        return self.head(self.block(self.tokens(x) + self.positions, src_mask=causal))


def models() -> dict[str, tuple[nn.Module, Any]]:
    """Name to module and one batch."""
    from torchvision.models import resnet18, vision_transformer
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    torch.manual_seed(0)
    vit = vision_transformer.VisionTransformer(32, 16, 2, 12, 768, 3072, num_classes=10)
    torch.nn.init.normal_(vit.heads.head.weight, std=0.05)
    ids = torch.randint(0, 50, (7, 13))
    small = {"vocab_size": 100, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    return {
        "MLP": (mlp(), (torch.rand(8, 784), torch.arange(8) % 10)),
        "conv net with groups and BatchNorm": (SmallConv(), (torch.rand(8, 3, 16, 16), torch.arange(8) % 10)),
        "torchvision resnet18": (resnet18(num_classes=10), (torch.rand(4, 3, 32, 32), torch.arange(4))),
        "vit_b_16, 2 layers, 32x32": (vit, (torch.rand(4, 3, 32, 32), torch.arange(4))),
        "BERT of 2 layers, padded": (bert(**small), tokens(6, 16, 100, padded=True)),
        "language model with tied weights": (LanguageModel(), (ids[:, :-1], ids[:, 1:])),
        "ConvNeXt": (
            ConvNeXt([CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 1)], num_classes=10, layer_scale=0.5),
            (torch.rand(4, 3, 32, 32), torch.arange(4)),
        ),
    }


def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean over positions, if there are any."""
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten())


def oracle(module: nn.Module, batch: Any) -> dict[str, torch.Tensor]:
    """Empirical Fisher, one sample and one backward pass at a time, in float64."""
    module = copy.deepcopy(module).double().eval()
    named = dict(module.named_parameters())
    sums = {name: torch.zeros_like(p) for name, p in named.items()}
    n = len(batch["labels"] if isinstance(batch, dict) else batch[1])
    for i in range(n):
        one = (
            {name: value[i : i + 1] for name, value in batch.items()}
            if isinstance(batch, dict)
            else tuple(v[i : i + 1].double() if v.is_floating_point() else v[i : i + 1] for v in batch)
        )
        gradients = torch.autograd.grad(loss(*logits_of(module, one)), list(named.values()), allow_unused=True)
        for name, gradient in zip(named, gradients, strict=True):
            if gradient is not None:
                sums[name] += gradient.square() / n
    return sums


def agreement() -> list[Row]:
    """Largest relative error of any parameter: against the oracle, and between batch sizes 1, 7 and 64."""
    from lightning_cl.functional import diagonal_fisher

    rows = []
    for name, (module, batch) in models().items():
        found = diagonal_fisher(module, [batch], labels="empirical", logits_fn=logits_of)
        expected = oracle(module, batch)
        largest = max(float(value.norm()) for value in expected.values())
        errors = {}
        for key, value in expected.items():
            # a gradient that is zero but for rounding (the bias of attention's keys) has no relative error
            if float(value.norm()) > 1e-20 * largest:
                errors[key] = float((found[key].double() - value).norm() / value.norm())
            elif float(found[key].norm()) > 1e-12 * largest:
                errors[key] = float("inf")
        worst = max(errors, key=errors.__getitem__)
        rows.append(_error(f"agreement: {name}", errors[worst], f"float64 loop; worst: {worst}"))
    torch.manual_seed(1)
    module, x, y = mlp(), torch.rand(64, 784), torch.arange(64) % 10
    results = [diagonal_fisher(module, list(zip(x.split(size), y.split(size), strict=True))) for size in (1, 7, 64)]
    worst_error = max(
        float((other[key] - value).norm() / value.norm()) for other in results[:2] for key, value in results[2].items()
    )
    rows.append(_error("batch sizes 1, 7 and 64: MLP, exact", worst_error, "the Fisher at batch size 64"))
    return rows


def _error(name: str, error: float, reference_is: str) -> Row:
    return {
        "name": name,
        "ours": error,
        "reference": 0.0,
        "ratio": error,
        "unit": "relative error",
        "reference_is": reference_is,
        "bar": 1e-5,
    }


def importance(repeats: int, alternating: Callable[..., Any], row: Callable[..., Row]) -> list[Row]:
    """All rows."""
    return [*agreement(), *costs(repeats, alternating, row)]
