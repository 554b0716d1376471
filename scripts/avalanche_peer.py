#!/usr/bin/env python3
"""One run of Avalanche 0.6.0 for compare_avalanche.py, in an environment of its own; prints a line of JSON.

    PYTHON scripts/avalanche_peer.py METHOD SEED DATA_DIR {stock,tensors}

``stock``: SplitMNIST and the default evaluator as its documentation shows them. ``tensors``: the same images, ready
and normalised as tensors, without transforms or loggers.
"""

import contextlib
import json
import os
import sys
import time

import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.benchmarks.classic import SplitMNIST
from avalanche.benchmarks.utils import _make_taskaware_tensor_classification_dataset
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import InteractiveLogger
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import AGEM, DER, EWC, GEM, LwF, Naive, Replay
from torch import nn
from torchvision.datasets import MNIST

#: what each method is given; memories hold 500 samples in all at the end
METHODS = {
    "naive": (Naive, {}),
    "ewc": (EWC, {"ewc_lambda": 1.0}),
    "lwf": (LwF, {"alpha": 1.0, "temperature": 2.0}),
    "er": (Replay, {"mem_size": 500}),
    "derpp": (DER, {"mem_size": 500, "alpha": 0.1, "beta": 0.5}),
    "gem": (GEM, {"patterns_per_exp": 100, "memory_strength": 0.5}),
    "a_gem": (AGEM, {"patterns_per_exp": 100, "sample_size": 128}),
}


def tensors(data_dir: str, train: bool):
    """MNIST as one tensor data set."""
    data = MNIST(data_dir, train=train)
    x = data.data.float().div(255).sub(0.1307).div(0.3081).unsqueeze(1)
    return _make_taskaware_tensor_classification_dataset(x, data.targets, task_labels=0)


def main() -> None:
    method, seed, data_dir, pipeline = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    order = list(range(10))
    if pipeline == "stock":
        stream = SplitMNIST(5, fixed_class_order=order, dataset_root=data_dir, seed=seed)
    else:
        stream = nc_benchmark(
            tensors(data_dir, True), tensors(data_dir, False), 5, task_labels=False, fixed_class_order=order
        )
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kind, settings = METHODS[method]
    metrics = accuracy_metrics(minibatch=True, epoch=True, experience=True, stream=True)
    loggers = [InteractiveLogger()] if pipeline == "stock" else []
    if pipeline == "tensors":
        metrics = accuracy_metrics(experience=True, stream=True)
    learner = kind(
        model=model,
        optimizer=optimizer,
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=128,
        train_epochs=1,
        eval_mb_size=1000,
        evaluator=EvaluationPlugin(metrics, loggers=loggers),
        **settings,
    )
    start = time.process_time()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        for i, experience in enumerate(stream.train_stream):
            learner.train(experience)
            found = learner.eval(stream.test_stream[: i + 1])
    seconds = time.process_time() - start
    accuracies = [value for name, value in found.items() if name.startswith("Top1_Acc_Exp")]
    print(json.dumps({"accuracy": 100 * sum(accuracies) / len(accuracies), "seconds": seconds}))


if __name__ == "__main__":
    main()
