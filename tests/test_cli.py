"""The command line: help, results, and what a person who makes a mistake sees."""

import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.errors import InstantiationException, MissingConfigException
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import OmegaConf

from lightning_cl import app, cli
from lightning_cl._conf import conf_dir
from lightning_cl._messages import PLUGINS, one_line
from lightning_cl._overrides import with_plus
from lightning_cl._sections import refuse_unknown_keys
from lightning_cl.errors import InputError
from tests.command_line import QUICK, Call, call

__all__ = ["call"]
OWN_DATA = ["stream=custom", "+stream.dataset.train._target_=tests.command_line.Labelled"]


@pytest.mark.parametrize(
    ("arguments", "given", "hint"),
    [
        ("nokey=1", "nokey=1 (no such key)", "--help"),
        ("lr=0.1", "lr=0.1 (no such key)", "optimizer.lr?"),
        ("trainer.max_epoch=3", "trainer.max_epoch=3", "did you mean trainer.max_epochs"),
        ("callbacks.er.memorysize=3", "callbacks.er.memorysize=3", "did you mean callbacks.er.memory_size"),
        ("+callbacks.er.memorysize=3", "memorysize=3", "did you mean memory_size?"),
        ("callbacks.er.storag=disk", "callbacks.er.storag=disk (no such key)", "callbacks.er.storage"),
        ("+callbacks.er.storag=disk", "storag", "did you mean storage?"),
        ("+callbacks.er.nothing=1", "nothing", "it has memory_size, policy, "),
        ("callbacks.er.id_fn=3", "callbacks.er.id_fn=3", "leave it out"),
        ("callbacks.er.policy=herding callbacks.er.features_fn=3", "callbacks.er.features_fn=3", "leave it out"),
        ("callbacks.er.policy=loss_aware callbacks.er.losses_fn=3", "callbacks.er.losses_fn=3", "leave it out"),
        ("callbacks.er.deletion_log=/", "deletion_log='/'", "deletion_log='deleted.txt'"),
        ("callbacks.er.storage=disk callbacks.er.path=''", "path=''", "path='memory'"),
        ("callbacks.er.storage=disk callbacks.er.path=.", "path='.'", "path='memory'"),
        ("+fill=step", "fill='step' (no such key)", "did you mean callbacks.er.fill?"),
        ("+limit_task=1", "limit_task=1 (no such key)", "did you mean limit_tasks?"),
        ("+a.b.c=1", "a={'b': {'c': 1}} (no such key)", "write ${a} where it is used"),
        ("hydra/launcher=nope", "hydra/launcher=nope", "--help"),
        ("experiment=budget/split_mnits", "experiment=budget/split_mnits", "experiment=budget/split_mnist?"),
        ("+seed=3", "+seed=3", "write seed=3"),
        ("+trainer.max_epoch=3", "+trainer.max_epoch=3", "did you mean max_epochs?"),
        ("method=ewd", "method=ewd", "did you mean method=ewc?"),
        ("method=[ewc,er,foo]", "method=foo", "--help"),
        ("stream=split_mnits", "stream=split_mnits", "did you mean stream=split_mnist?"),
        ("experiment=foo", "experiment=foo", "--help"),
        ("logger=foo", "logger=foo", "--help"),
        ("stream=split_mnist", "data_dir='data' (MNIST not found)", "data_dir=FOLDER"),
        ("stream=split_mnist data_dir=no/such", "data_dir='no/such' (MNIST not found)", "data_dir=FOLDER"),
        ("stream=image_folder stream.dataset.path=no/such", "path='no/such'", "stream.dataset.path=FOLDER"),
        ("stream.n_tasks=50", "10 classes for 50 tasks", "n_tasks <= 10"),
        ("stream.n_tasks=0", "n_tasks=0", "stream.n_tasks=5"),
        ("stream.n_tasks=abc", "stream.n_tasks='abc'", "leave it out"),
        ("method=icarl callbacks.icarl.memory_size=-1", "memory_size=-1", "memory_size=200"),
        ("callbacks.er.memory_size=-5", "memory_size=-5", "memory_size=200"),
        ("method=ewc callbacks.ewc.lambda_=abc", "callbacks.ewc.lambda_='abc'", "leave it out"),
        ("method=ewc callbacks.ewc.lambda_=-1", "lambda_=-1", "lambda_=1000"),
        ("batch_size=0", "batch_size=0", "leave it out"),
        ("batch_size=abc", "batch_size='abc'", "leave it out"),
        ("num_workers=-1", "num_workers=-1", "num_workers=0"),
        ("limit_tasks=0", "limit_tasks=0", "leave it out"),
        ("seed=abc", "seed='abc'", "leave it out"),
        ("callbacks=3", "callbacks=3", "leave it out"),
        ("optimizer.lr=abc", "optimizer.lr='abc'", "leave it out"),
        ("optimizer.lr=-1", "optimizer.lr=-1", "HYDRA_FULL_ERROR=1"),
        ("accelerator=foo", "accelerator=foo", "HYDRA_FULL_ERROR=1"),
        ("+trainer.precision=13", "+trainer.precision=13", "HYDRA_FULL_ERROR=1"),
        ("model=custom", "model.backbone._target_ is not set", "set model.backbone._target_=VALUE"),
        ("model.backbone._target_=no.such", "model.backbone._target_=no.such", "import no.such"),
        ("model=timm model.backbone.model=resnet188", "model='resnet188'", "did you mean resnet18"),
        ("model=timm model.backbone.weights=no/such.pth", "weights='no/such.pth'", "give a path"),
        ("model=torchvision model.backbone.weights=no/such.pth", "weights='no/such.pth'", "give a path"),
        ("model=hf_image model.backbone.model=vitt", "model='vitt'", "did you mean vit"),
        ("+model.head_layer=rbf", "model.head_layer='rbf'", "leave it out"),
        ("resume=sometimes", "resume='sometimes'", "leave it out"),
        ("reprot runs", "'reprot'", "did you mean the subcommand report?"),
        ("report no/such", "'no/such'", "run folder"),
        ("--no-such-flag", "unrecognized arguments: --no-such-flag", "--hydra-help"),
    ],
)
def test_bad_input_is_one_line(arguments: str, given: str, hint: str, call: Call):
    line = call(*arguments.split()).error
    assert given in line.partition("; expected ")[0]
    assert hint in line.partition(". HINT: ")[2]


def test_only_options_of_the_group_are_named(call: Call):
    line = call("hydra/launcher=nope").error
    assert re.search(r"expected one of (basic|joblib|slurm|submitit|submitit_local|submitit_slurm|, )+\. HINT", line)


@pytest.mark.parametrize("plugin", sorted(PLUGINS))
def test_an_option_of_a_package_that_is_not_there_names_the_extra(plugin: str):
    missing = MissingConfigException(f"Could not find '{plugin}'", missing_cfg_file=plugin, options=["basic", "search"])
    line = one_line(missing, ["hydra/sweeper=search"])
    group, _, option = plugin.rpartition("/")
    extras = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert line is not None
    assert line.startswith(f"{group}={option}, which is not installed; ")
    assert line.endswith(f"HINT: pip install 'lightning-cl[{PLUGINS[plugin]}]'")
    package = f"hydra-{option.partition('_')[0]}-{group.rpartition('/')[2]}"
    assert any(requirement.startswith(package) for requirement in extras[PLUGINS[plugin]])


@pytest.mark.parametrize(
    ("arguments", "blamed"),
    [
        (
            "limit_tasks=2 +callbacks.er.id_fn={_target_:torch.nn.Linear}",
            "+callbacks.er.id_fn={_target_:torch.nn.Linear}",
        ),
        ("seed=13 limit_tasks=13 +trainer.precision=13", "+trainer.precision=13"),
        ("limit_tasks=1 accelerator=foo", "accelerator=foo"),  # the trainer's, by ${accelerator}
        ("seed=-1 optimizer.lr=-1", "optimizer.lr=-1"),
    ],
)
def test_only_the_failing_sections_overrides_are_blamed(arguments: str, blamed: str, call: Call):
    assert call(*arguments.split()).error.startswith(f"error: {blamed} (")


def test_a_plus_is_not_needed_for_what_a_constructor_takes(call: Call):
    found = OmegaConf.create(call("callbacks.er.policy=ring", "trainer.precision=64-true", "--cfg", "job").out)
    assert (found.callbacks.er.policy, found.trainer.precision) == ("ring", "64-true")
    assert with_plus(["callbacks.er.policy=ring", "seed=1"]) == ["+callbacks.er.policy=ring", "seed=1"]
    assert with_plus(["callbacks.er.memory_size=3", "callbacks.er.no=1", "++callbacks.er.mode=separate"]) == [
        *("callbacks.er.memory_size=3", "callbacks.er.no=1", "++callbacks.er.mode=separate")
    ]
    assert with_plus(["callbacks.er.policy_options.time_constant=9"])[0].startswith("+")
    sweep = ["method=ewc,er", "callbacks.ewc.variant=online,offline", "callbacks.ewc.gamma=interval(0,1)"]
    assert (
        with_plus(
            sweep[1:],
        )
        == sweep[1:]
    )
    assert with_plus(["method=ewc", *sweep[1:]]) == ["method=ewc", *(f"+{text}" for text in sweep[1:])]
    assert with_plus(sweep) == [sweep[0], *(f"++{text}" for text in sweep[1:])]


def test_a_sweep_over_methods_sets_what_one_of_them_has(call: Call, tmp_path: Path):
    sweep = ["-m", "method=naive,er", "callbacks.er.policy=ring", "callbacks.er.memory_size=50", "limit_tasks=1"]
    assert with_plus(sweep)[2:4] == ["++callbacks.er.policy=ring", "++callbacks.er.memory_size=50"]
    # streams and experiments bring settings for methods that are not chosen
    blurry, grid = ["stream=blurry_mnist", *sweep[1:]], ["experiment=lambda_sweep", "method=ewc,si"]
    assert with_plus(blurry)[2:4] == ["++callbacks.er.policy=ring", "++callbacks.er.memory_size=50"]
    assert with_plus([*grid, "callbacks.ewc.n_samples=9"])[-1] == "++callbacks.ewc.n_samples=9"
    assert with_plus([*grid, "callbacks.ewc.samples=9"])[-1] == "callbacks.ewc.samples=9"
    assert (
        with_plus(["stream=blurry_mnist", "method=naive", "callbacks.er.policy=ring"])[-1] == "callbacks.er.policy=ring"
    )
    assert call(*sweep, *QUICK).code == 0
    files = sorted(tmp_path.glob("runs/*/*/*/*/results.json"))
    er, naive = (json.loads(file.read_text()) for file in files)
    assert (er["method"], naive["method"]) == ("er", "naive")
    assert er["config"]["callbacks"]["er"]["policy"] == "ring"
    assert naive["average_accuracy"] is not None
    # a job has the folder that it has alone
    assert call("method=er", *sweep[2:], *QUICK).code == 0
    assert sorted(tmp_path.glob("runs/*/*/*/*/results.json")) == files
    # no method of the sweep has it
    refused = call("-m", "method=naive,ewc", "callbacks.er.policy=ring", *QUICK)
    assert refused.code == 2
    assert "callbacks.er.policy=ring" in refused.error


def test_a_key_of_ones_own_is_welcome_where_another_refers_to_it(call: Call):
    own = ["+my_lr=0.1", "optimizer.lr=${my_lr}", "+place=here", "hydra.run.dir=${place}"]
    lam = ["+lam=3", "method=ewc", "callbacks.ewc.lambda_=${lam}"]  # the reference method has no such callback
    quick = [text for text in QUICK if "reference" not in text]
    assert call(*own, *lam, *quick, "limit_tasks=1", "reference_methods=[naive]").code == 0


@pytest.mark.parametrize(
    ("config", "refused"),
    [
        ({"seed": 1, "callbacks": {}}, None),
        ({"mine": 1, "seed": "${mine}"}, None),
        ({"mine": {"a": 1}, "data_dir": "${oc.env:X,${mine.a}}"}, None),
        ({"mine": 1, "seed": "${stream.mine}"}, "mine"),
        ({"mine": 1, "seed": "${mine_too}"}, "mine"),
        ({"logger": {"x": 1}}, "logger"),
    ],
)
def test_keys_that_nothing_reads(config: dict, refused: str | None):
    with contextlib.nullcontext() if refused is None else pytest.raises(InputError, match=f"^{refused}=.*no such key"):
        refuse_unknown_keys(OmegaConf.create(config))


def test_options_of_ones_own_are_named(call: Call, tmp_path: Path):
    (tmp_path / "own" / "method").mkdir(parents=True)
    (tmp_path / "own" / "method" / "tiny.yaml").write_text("# @package _global_\ncallbacks: {}\n")
    assert call("--config-dir", "own", "method=tiny", "--cfg", "job").code == 0
    assert "did you mean method=tiny?" in call("--config-dir", "own", "method=tinny").error


def test_bad_labels_and_empty_tasks(call: Call):
    line = call(*OWN_DATA, "+stream.dataset.train.labels=[0,1,7]", "+stream.dataset.train.classes=2").error
    assert "label 7 at index 20; expected an integer from 0 to 1" in line
    line = call(*OWN_DATA, "+stream.dataset.train.labels=[0,1,3]", "stream.n_tasks=4").error
    assert "task 2" in line.partition("; expected ")[0]


def test_unwritable_folder(call: Call, tmp_path: Path):
    (tmp_path / "file").write_text("")
    assert f"{tmp_path}/file/run" in call(f"hydra.run.dir={tmp_path}/file/run").error


def test_full_error_gives_the_traceback(call: Call, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(InstantiationException, match="memory_size=-1"):
        call("callbacks.er.memory_size=-1")


def _ctrl_c_as_lightning_has_it() -> None:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        sys.exit(1)


def _sigterm_as_lightning_has_it() -> None:
    raise SIGTERMException


@pytest.mark.parametrize(
    ("stop", "code", "word"),
    [(_ctrl_c_as_lightning_has_it, 130, "interrupted"), (_sigterm_as_lightning_has_it, 143, "terminated")],
)
@pytest.mark.parametrize("mode", [[], ["-m"]])
def test_a_stopped_run_says_so(
    stop: Callable[[], None], code: int, word: str, mode: list[str], call: Call, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(app, "run_job", lambda cfg: stop())
    outcome = call(*mode, "method=naive,er" if mode else "method=naive")
    assert (outcome.code, outcome.err) == (code, f"{word}; the same command goes on\n")


def test_a_run_stopped_by_a_time_limit_goes_on_later(call: Call):
    arguments = ["method=naive", *QUICK, "hydra.run.dir=here"]
    outcome = call(*arguments, "trainer.max_epochs=100000", "+trainer.max_time='00:00:00:01'")
    assert outcome.code == 1
    assert outcome.err.startswith("stopped in task 0 at step ")
    assert outcome.err.count("\n") == 1


def test_non_finite_loss_leaves_finished_tasks(call: Call, tmp_path: Path):
    line = call("method=naive", *QUICK, "optimizer=sgd", "optimizer.lr=1e20", "hydra.run.dir=early").error
    assert "loss=" in line
    # the penalty is 0 in the first task, so that the run fails in the second
    diverging = ["method=ewc", "callbacks.ewc.lambda_=1e30", "optimizer=sgd", *QUICK, "hydra.run.dir=late"]
    outcome = call(*diverging)
    line = outcome.err.splitlines()[-1]  # a warning that lambda is too large comes before it
    assert (outcome.code, line.partition("=")[0]) == (2, "error: loss")
    assert "lambda_" in line.partition(". HINT: ")[2]
    progress = json.loads((tmp_path / "late" / "sequence.json").read_text())["progress"]
    assert progress["task"] == 1
    assert list(progress["rows"]) == ["0"]
    assert list((tmp_path / "late" / "checkpoints").glob("task0001-stage0*.ckpt"))
    results = json.loads((tmp_path / "late" / "results.json").read_text())
    assert (results["status"], results["accuracy_matrix"][0][0]) == ("failed", progress["rows"]["0"][0])


def test_a_run_can_be_repeated_but_not_changed(call: Call, tmp_path: Path):
    arguments = ["method=naive", *QUICK, "hydra.run.dir=here"]
    assert call(*arguments).code == 0
    results = (tmp_path / "here" / "results.json").read_text()
    written = (tmp_path / "here" / "sequence.json").stat().st_mtime_ns
    again = call(*arguments)
    assert again.code == 0
    assert "after \\ tested on" in again.out  # a finished run prints its result
    assert json.loads((tmp_path / "here" / "results.json").read_text()) == json.loads(results)
    assert (tmp_path / "here" / "sequence.json").stat().st_mtime_ns == written
    line = call(*arguments, "optimizer.lr=0.5").error
    assert "optimizer.lr: 0.001 -> 0.5" in line
    assert "resume=never" in line
    for checkpoint in (tmp_path / "here" / "checkpoints").glob("*.model.ckpt"):
        checkpoint.write_bytes(b"not a checkpoint")
    assert "cannot be read" in call(*arguments).error
    assert call(*arguments, "resume=never").code == 0


def test_reference_methods_stay_in_the_results(call: Call, tmp_path: Path):
    arguments = ["method=er", *QUICK, "reference_methods=[naive]"]
    assert call(*arguments).code == 0
    (path,) = tmp_path.glob("runs/split_digits/er/*/seed=0/results.json")
    before = json.loads(path.read_text())
    assert before["reference_methods"]["naive"]["method"] == "naive"
    assert call("-m", *arguments).code == 0  # the same job in a sweep
    assert json.loads(path.read_text()) == before


def test_help_lists_groups_subcommands_and_commands(call: Call):
    outcome = call("--help")
    assert outcome.code == 0
    for group in ("stream", "method", "model", "optimizer", "scheduler", "trainer", "logger", "experiment"):
        assert f"\n  {group}:" in outcome.out
    for option in ("split_digits", "online_ewc", "vandeven2022/split_mnist_class", "report"):
        assert option in outcome.out
    assert outcome.out.partition("worth copying\n")[2].partition("\n\n")[0].count("\n  lightning-cl") == 4
    assert call("stream=split_mnist", "-h").out == outcome.out
    assert "DIR" in call("report", "--help").out


def test_five_commands_worth_copying_compose(call: Call):
    commands = cli.HELP.partition("worth copying\n")[2].partition("\n\n")[0].splitlines()
    assert len(commands) == 5
    for command in commands:
        arguments = command.split("   ")[0].split()[1:]
        if arguments[:1] != ["report"]:
            composed = [argument for argument in arguments if argument != "-m" and "," not in argument]
            assert call("--cfg", "job", *composed).code == 0


def _run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.slow
def test_help_is_as_fast_as_an_empty_hydra_app(tmp_path: Path):
    (tmp_path / "app.py").write_text(
        "import hydra\n\n@hydra.main(version_base='1.3', config_path=None)\ndef main(cfg):\n    pass\n\nmain()\n"
    )
    seconds: dict[str, list[float]] = {"ours": [], "empty": []}
    commands = {"empty": ["app.py"], "ours": ["-m", "lightning_cl"]}
    for _ in range(5):
        for name, command in commands.items():
            start = time.perf_counter()
            assert _run(sys.executable, *command, "--help", cwd=tmp_path).returncode == 0
            seconds[name].append(time.perf_counter() - start)
    assert statistics.median(seconds["ours"]) <= 1.2 * statistics.median(seconds["empty"])
    check = "import sys, lightning_cl.cli as c; c.main(['--help']); print({'torch', 'hydra'} & set(sys.modules))"
    assert _run(sys.executable, "-c", check, cwd=tmp_path).stdout.endswith("set()\n")


@pytest.mark.slow
def test_one_line_in_a_process_of_its_own(tmp_path: Path):
    done = _run(sys.executable, "-m", "lightning_cl", "method=ewd", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: method=ewd; expected one of a_gem, ")
    assert done.stderr.count("\n") == 1


def test_configs_are_found():
    assert (conf_dir() / "config.yaml").is_file()
