"""What runs of Split MNIST cost beside hand-written loops: the subject ``end_to_end`` of benchmark.py."""

import contextlib
import functools
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

Row = dict[str, Any]
Data = list[tuple[Tensor, Tensor]]
BATCH, MEMORY = 128, 500


def end_to_end(
    data_dir: str,
    repeats: int,
    alternating: Callable[..., Any],
    row: Callable[..., Row],
    mute: Callable[[], contextlib.AbstractContextManager[Any]],
) -> list[Row]:
    """``fit`` alone, naive, with progress bar, CSV logger and metrics; a whole run with ER, evaluation and files."""
    from lightning_cl import Replay
    from lightning_cl.streams import build_stream, mnist

    stream = build_stream(dataset=mnist(data_dir), scenario="class_incremental", name="split_mnist", n_tasks=5)
    train, test = (
        [part.batch(torch.arange(len(part))) for part in parts] for parts in zip(*_parts(stream), strict=True)
    )

    def replay() -> Any:
        return Replay(MEMORY, batch_size=BATCH)

    a, b = alternating(lambda: ours(stream, [], mute)[1], lambda: plain(train, [], 0), repeats)
    text = "a hand-written PyTorch loop over the same steps and data"
    rows = [row("end to end: fit of split_mnist, naive", a, b, "CPU s", text)]
    a, b = alternating(lambda: ours(stream, [replay()], mute)[0], lambda: plain(train, test, MEMORY), repeats)
    text = "a hand-written PyTorch loop: the same steps, memory and evaluations, no files"
    rows.append(row("end to end: whole run of split_mnist, ER-500", a, b, "CPU s", text) | {"bar": 1.3})
    return rows


def _parts(stream: Any) -> Iterator[tuple[Any, Any]]:
    for task in stream:
        yield task.train, task.test


def ours(stream: Any, callbacks: list[Any], mute: Callable[[], Any]) -> tuple[float, float]:
    """CPU seconds of a run, and of its fits."""
    from lightning.pytorch import Trainer
    from lightning.pytorch.loggers import CSVLogger

    from lightning_cl import FineTuningModule, run_sequence
    from lightning_cl.finetuning import MLP
    from lightning_cl.sequence import stages

    spent, original = 0.0, stages.fit

    def timed(state: Any, task: Any) -> None:
        nonlocal spent
        start = time.process_time()
        original(state, task)
        spent += time.process_time() - start

    stages.fit = timed
    try:
        with tempfile.TemporaryDirectory() as folder, mute():
            module = FineTuningModule(MLP((1, 28, 28), (400, 400)))
            start = time.process_time()
            run_sequence(
                module,
                stream,
                callbacks,
                run_dir=folder,
                trainer=functools.partial(Trainer, max_epochs=1, accelerator="cpu"),
                loggers=[functools.partial(CSVLogger, name="csv")],
                progress_bar=True,
            )
            whole = time.process_time() - start
    finally:
        stages.fit = original
    return whole, spent


def plain(train: Data, test: Data, memory_size: int) -> float:
    """CPU seconds of the loop: with a reservoir that is filled after each task, and evaluations of ``test``."""
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 10)
    )
    shape = train[0][0].shape[1:]
    memory = torch.empty(memory_size, *shape), torch.empty(memory_size, dtype=torch.long)
    seen = 0
    start = time.process_time()
    for t, (x, y) in enumerate(train):
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        n = 2 * t + 2
        for indices in torch.randperm(len(y)).split(BATCH):
            inputs, labels = x[indices], y[indices]
            if seen and memory_size:
                drawn = torch.randperm(min(seen, memory_size))[:BATCH]
                inputs, labels = torch.cat([inputs, memory[0][drawn]]), torch.cat([labels, memory[1][drawn]])
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs)[:, :n], labels)
            loss.backward()
            optimizer.step()
        for i in range(len(y)) if memory_size else ():
            place = seen if seen < memory_size else random.randrange(seen + 1)
            if place < memory_size:
                memory[0][place], memory[1][place] = x[i], y[i]
            seen += 1
        with torch.no_grad():
            for of, labels in test[: t + 1]:
                for inputs, expected in zip(of.split(BATCH), labels.split(BATCH), strict=True):
                    (model(inputs)[:, :n].argmax(1) == expected).float().mean()
    return time.process_time() - start
