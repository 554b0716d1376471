import subprocess
import sys

from lightning_cl.report import main

from .examples import example_results, write_run


def test_one_run_has_its_report_written_anew(tmp_path, capsys):
    folder = write_run(tmp_path / "deep" / "run", example_results(tasks=2))
    (folder / "report.html").write_text("old")
    assert main([str(tmp_path)]) == 0
    assert "er on split_digits" in (folder / "report.html").read_text()
    out = capsys.readouterr()
    assert f"report: {folder / 'report.html'}" in out.out
    assert out.err == ""
    assert main([str(folder), "--output", str(tmp_path / "new")]) == 0
    assert (tmp_path / "new" / "report.html").is_file()


def test_several_runs_are_compared(tmp_path, capsys, monkeypatch):
    runs = [write_run(tmp_path / "runs" / method, example_results(method, 2)) for method in ("naive", "er")]
    write_run(tmp_path / "runs" / "copy", example_results("er", 2))
    (tmp_path / "runs" / "bad").mkdir()
    (tmp_path / "runs" / "bad" / "results.json").write_text("{")
    assert main([str(tmp_path / "runs")]) == 0
    out = capsys.readouterr()
    assert f"comparison: {tmp_path / 'runs' / 'comparison.html'}" in out.out
    assert "average accuracy (%)" in out.out
    assert [line.split(":")[0] for line in out.err.splitlines()] == ["warning", "warning"]
    monkeypatch.chdir(tmp_path)
    assert main([*map(str, runs)]) == 0
    assert (tmp_path / "comparison" / "comparison.html").is_file()


def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    write_run(tmp_path / "run", example_results(tasks=1))
    cases = [[], ["--nonsense"], [str(tmp_path / "nowhere")], [str(tmp_path / "file")]]
    for argv in [*cases, [str(tmp_path / "run"), "--output", str(tmp_path / "file")]]:
        assert main(argv) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert "HINT: " in error


def test_help_is_not_an_error(capsys):
    assert main(["--help"]) == 0
    assert "usage: lightning-cl report" in capsys.readouterr().out


def test_importing_the_package_loads_nothing_heavy(tmp_path):
    folder = write_run(tmp_path, example_results(tasks=2))
    heavy = "{'torch', 'lightning', 'matplotlib', 'jinja2', 'rich'}"
    code = f"import sys, lightning_cl.report as r; assert not {heavy} & set(sys.modules)\n"
    code += f"assert r.main([{str(folder)!r}]) == 0; assert not {{'torch', 'matplotlib.pyplot'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
