"""The wheel, installed where nothing else of ours is: the same program, with its configs and templates."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
QUICK = ["trainer.max_epochs=1", "stream.n_tasks=2", "reference_methods=[]"]

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    hidden = ("PYTHONPATH", "VIRTUAL_ENV", "LIGHTNING_CL_DATA")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    (path,) = out.glob("lightning_cl-*-py3-none-any.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``bin`` of a new environment that has our wheel, and sees the dependencies installed here but no checkout."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).stdout.strip()
    # on the path behind the new environment's own packages; .pth files in there, an editable install's, are not read
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    target = ["--python", python, "install", "--quiet", "--no-deps", "--no-index", "--force-reinstall", wheel]
    run(sys.executable, "-m", "pip", *target, cwd=folder)
    return folder / "bin"


def test_the_wheel_holds_what_is_not_python(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
    for path in (ROOT / "conf").rglob("*.yaml"):
        assert f"lightning_cl/conf/{path.relative_to(ROOT / 'conf').as_posix()}" in names
    for path in (ROOT / "lightning_cl").rglob("*.j2"):
        assert path.relative_to(ROOT).as_posix() in names
    assert "lightning_cl/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests", "scripts", "conf/"))]
    assert "License-Expression: Apache-2.0" in text
    for extra in ("hf", "timm", "cluster", "joblib", "tensorboard", "test", "dev"):
        assert f"Provides-Extra: {extra}\n" in text


def test_it_is_the_wheel_that_runs(installed: Path, tmp_path: Path):
    check = "import lightning_cl, sys; print(lightning_cl.__file__, *sorted({'torch', 'lightning'} & set(sys.modules)))"
    where = run(installed / "python", "-c", check, cwd=tmp_path).stdout.split()
    assert len(where) == 1  # importing it loads nothing heavy
    assert Path(where[0]).is_relative_to(installed.parent)
    versions = "from importlib.metadata import version as v; import lightning_cl; print(v('lightning-cl'))"
    assert run(installed / "python", "-c", versions, cwd=tmp_path).stdout.strip() == "0.1.0"


def test_one_program_by_two_names_in_any_folder(installed: Path, tmp_path: Path):
    texts = {
        run(*command, "--help", cwd=folder).stdout
        for command in ([installed / "lightning-cl"], [installed / "python", "-m", "lightning_cl"])
        for folder in (tmp_path, ROOT / "docs")
    }
    texts.add(run(sys.executable, "-m", "lightning_cl", "--help", cwd=ROOT).stdout)  # a checkout
    assert len(texts) == 1
    assert "split_digits" in texts.pop()


def test_a_config_runs_from_the_wheel(installed: Path, tmp_path: Path):
    done = run(installed / "lightning-cl", *QUICK, cwd=tmp_path)
    (folder,) = tmp_path.glob("runs/split_digits/er/*/seed=0")
    results = json.loads((folder / "results.json").read_text())
    assert (results["status"], results["method"], len(results["accuracy_matrix"])) == ("finished", "er", 2)
    assert (folder / "report.html").stat().st_size > 10_000
    assert str(folder / "report.html") in done.stdout.replace("\n", "")
    report = run(installed / "python", "-m", "lightning_cl", "report", folder, "--output", "again", cwd=tmp_path)
    assert "again/report.html" in report.stdout


def test_another_app_uses_our_groups(installed: Path, tmp_path: Path):
    (tmp_path / "main.yaml").write_text(
        "hydra: {searchpath: ['pkg://lightning_cl.conf']}\ndefaults: [config, _self_]\n"
    )
    (tmp_path / "app.py").write_text(
        "import hydra\nfrom lightning_cl._conf import register_resolvers\nregister_resolvers()\n\n"
        "@hydra.main(version_base='1.3', config_path='.', config_name='main')\n"
        "def main(cfg):\n    print(cfg.stream.name)\n\nmain()\n"
    )
    done = run(installed / "python", "app.py", "stream=split_mnist", cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("split_mnist\n", "")


@pytest.mark.wheel_network
def test_the_wheel_with_its_dependencies(wheel: Path, tmp_path: Path):
    venv.create(tmp_path / "env", with_pip=True)
    run(tmp_path / "env" / "bin" / "pip", "install", "--quiet", wheel, cwd=tmp_path)
    run(tmp_path / "env" / "bin" / "lightning-cl", *QUICK, cwd=tmp_path)
    assert list(tmp_path.glob("runs/split_digits/er/*/seed=0/report.html"))
