"""The run folder is a function of the run."""

from tests.conf.test_configs import composed


def folder(*overrides: str) -> str:
    return str(composed(*overrides, hydra=True).hydra.run.dir)


def test_names():
    assert folder() == "runs/split_digits/er/default/seed=0"
    assert folder("method=[ewc,er]", "seed=3") == "runs/split_digits/ewc+er/default/seed=3"
    assert folder("trainer.max_epochs=2", "batch_size=64") == folder("batch_size=64", "trainer.max_epochs=2")
    assert folder("batch_size=64") == "runs/split_digits/er/batch_size=64/seed=0"
    assert folder("experiment=vandeven2022/split_mnist_class", "method=er").startswith("runs/split_mnist/er/")


def test_where_it_runs_is_no_part_of_it():
    where = ["data_dir=elsewhere", "num_workers=2", "accelerator=cpu", "logger=csv", "resume=never", "download=true"]
    assert folder(*where) == folder()


def test_different_runs_have_different_folders():
    long = "x" * 200
    runs = [
        (),
        ("seed=1",),
        ("method=ewc",),
        ("method=[er,ewc]",),
        ("stream=split_mnist",),
        ("class_order_seed=1",),
        ("optimizer.lr=0.1",),
        ("optimizer.lr=0.10",),
        ("optimizer=sgd",),
        ("+stream.dataset.train=a/b",),
        ("+stream.dataset.train=a-b",),
        ("+stream.dataset.train='a b'",),
        (f"+stream.dataset.train={long}1",),
        (f"+stream.dataset.train={long}2",),
        ("+stream.dataset.train=/a/../b",),
        ("model.backbone.hidden=[10,10]",),
        ("model.backbone.hidden=[10]",),
    ]
    folders = [folder(*run) for run in runs]
    assert len(set(folders)) == len(runs)
    assert folders[-3:] == [folder(*run) for run in runs[-3:]]
    for name in folders:
        parts = name.split("/")
        assert len(parts) == 5, name  # a slash in a value makes no folder
        assert all(part not in ("", ".", "..") and len(part) < 128 for part in parts)
        assert not set(name) & set(" '\"{}$*?")
