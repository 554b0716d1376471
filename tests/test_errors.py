import pickle

import pytest
import torch

from lightning_cl._messages import one_line
from lightning_cl._types import refuse_wrong_kinds
from lightning_cl.errors import InputError, shortened
from lightning_cl.files import load_state, save_state, write_json


def test_input_error_has_three_parts_and_survives_pickling():
    error = InputError("x=3", "x < 2", "lower x")
    assert str(error) == "x=3; expected x < 2. HINT: lower x"
    again = pickle.loads(pickle.dumps(error))
    assert (again.given, again.expected, again.hint) == ("x=3", "x < 2", "lower x")
    assert isinstance(error, ValueError)


@pytest.mark.parametrize(
    ("text", "most", "said"),
    [
        ("one\n two", 7, "one two"),
        ("one two three", 12, "one two ..."),
        ("one two three", 7, "one two ..."),
        ("path/without/a/space", 4, "path ..."),
        ("", 4, ""),
    ],
)
def test_what_others_say_is_cut_between_words(text: str, most: int, said: str):
    assert shortened(OSError(text), most) == shortened(text, most) == said


def test_an_input_error_is_found_behind_others():
    outer = RuntimeError("wrapped")
    outer.__cause__ = InputError("x=3", "x\n< 2", "lower x")
    assert one_line(outer) == "x=3; expected x < 2. HINT: lower x"


def test_a_bug_has_no_line():
    assert one_line(ZeroDivisionError("division by zero")) is None
    assert one_line(TypeError("unsupported operand")) is None


def test_a_path_that_cannot_be_used_has_one():
    assert "'/x'; expected a readable and writable path" in one_line(FileNotFoundError(2, "No such file", "/x"))


def test_words_for_numbers_are_refused_where_the_constructor_wants_numbers():
    refuse_wrong_kinds({"optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1}, "name": "x"})
    refuse_wrong_kinds({"trainer": {"_target_": "lightning.pytorch.Trainer", "devices": "auto"}})  # may be a word
    with pytest.raises(InputError, match=r"^a\.lr='x'; expected a number\."):
        refuse_wrong_kinds({"a": {"_target_": "torch.optim.SGD", "lr": "x"}})
    with pytest.raises(InputError, match=r"^trainer\.max_epochs='x'; expected an integer or null\."):
        refuse_wrong_kinds({"trainer": {"_target_": "lightning.pytorch.Trainer", "max_epochs": "x"}})
    with pytest.raises(InputError, match=r"^many\[1\]\.lambda_='x'"):
        refuse_wrong_kinds({"many": [{}, {"_target_": "lightning_cl.EWC", "lambda_": "x"}]})


def test_files_are_whole_or_not_there(tmp_path):
    def fails(_: object) -> None:
        raise KeyboardInterrupt

    write_json(tmp_path / "a" / "x.json", {"x": [float("nan"), 1.5]})
    before = (tmp_path / "a" / "x.json").read_text()
    assert before.split() == ["{", '"x":', "[", "null,", "1.5", "]", "}"]
    from lightning_cl.files import atomic_write

    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "a" / "x.json", fails)
    assert (tmp_path / "a" / "x.json").read_text() == before
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x.json"]
    (tmp_path / "file").write_text("")
    with pytest.raises((InputError, OSError)):
        write_json(tmp_path / "file" / "x.json", {})


def test_checkpoints_hold_nothing_that_is_executed(tmp_path):
    save_state(tmp_path / "state.ckpt", {"version": 1, "weight": torch.ones(2)})
    assert load_state(tmp_path / "state.ckpt")["weight"].tolist() == [1.0, 1.0]
    torch.save({"code": InputError("a", "b", "c")}, tmp_path / "code.ckpt")
    with pytest.raises(pickle.UnpicklingError):
        load_state(tmp_path / "code.ckpt")


def test_an_error_in_writing_that_is_nobodys_fault_is_raised_as_it_is(tmp_path):
    """Not as its own cause: who walks the chain of causes would walk for ever."""
    from lightning_cl.files import atomic_write

    def fails(file):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug") as caught:
        atomic_write(tmp_path / "x", fails)
    assert caught.value.__cause__ is None
    caught.value.__cause__ = caught.value
    assert one_line(caught.value) is None
