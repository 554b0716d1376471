import pytest

from lightning_cl.errors import InputError
from lightning_cl.report import gather

from .examples import example_results, write_run


def test_finds_runs_at_any_depth_once_and_leaves_references_out(tmp_path):
    one = write_run(tmp_path / "a" / "b" / "seed=0", example_results())
    two = write_run(tmp_path / "c", example_results(seed=1))
    inner = write_run(one / "references" / "naive", example_results("naive"))
    assert [run.folder for run in gather([tmp_path, one])] == [one, two]
    assert [run.folder for run in gather([one / "references"])] == [inner]
    assert [run.folder for run in gather([two / "results.json"])] == [two]


def test_what_a_run_starts_from_is_left_out_before_it_has_results(tmp_path):
    run = write_run(tmp_path / "a", example_results())
    write_run(tmp_path / "b" / "source", example_results("naive"))
    (tmp_path / "b" / ".hydra").mkdir()
    assert [found.folder for found in gather([tmp_path])] == [run]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{ not json", "is not JSON"),
        ("[1]", "schema='list'"),
        ('{"schema": 2}', "schema=2"),
        ('{"schema": 1, "accuracy_matrix": 3}', "accuracy_matrix=3"),
        ('{"schema": 1, "accuracy_matrix": [[0.5]], "method": "er"}', "no 'stream'"),
        ('{"schema": 1, "accuracy_matrix": [[0.5]], "metric": "accuracy"}', "'metric' of another kind"),
        ('{"schema": 1, "accuracy_matrix": [[0.5]], "per_task": [5]}', "'per_task' of another kind"),
    ],
)
def test_unreadable_files_are_named_and_the_rest_is_read(tmp_path, content, said):
    good = write_run(tmp_path / "good", example_results())
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "results.json").write_text(content)
    with pytest.warns(UserWarning, match="left out: ") as caught:
        assert [run.folder for run in gather([tmp_path])] == [good]
    message = str(caught[0].message)
    assert said in message
    assert str(tmp_path / "bad" / "results.json") in message
    with pytest.raises(InputError, match=r"no readable results.json under"):
        gather([tmp_path / "bad"])


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    write_run(tmp_path / "good", example_results())
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "results.json").symlink_to(tmp_path / "nowhere")
    with pytest.warns(UserWarning, match="cannot read .*No such file"):
        assert len(gather([tmp_path])) == 1


def test_nothing_found(tmp_path):
    with pytest.raises(InputError, match=r"no such folder: .*nowhere.*HINT: give run folders"):
        gather([tmp_path / "nowhere"])
    with pytest.raises(InputError, match=r"no readable results.json under .*expected at least one"):
        gather([tmp_path])
