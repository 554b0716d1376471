"""EWC in each of its forms, killed in the middle of a task, ends as the uninterrupted one, bit for bit."""

from pathlib import Path

import pytest
import torch

from lightning_cl import EWC
from tests.resume.helpers import contents, differences
from tests.resume.test_penalties import METHODS, learn, run

FORMS = {
    "proximal": lambda: EWC(50.0, apply="proximal"),
    "auto": lambda: EWC("auto", lambda_schedule=[2.0]),
    "auto, proximal": lambda: EWC("auto", apply="proximal", variant="average", importance_dtype="bfloat16"),
    "steps": lambda: EWC(5.0, lambda_schedule=lambda task, step: step / 4, normalize="mean", exclude="bias"),
}


@pytest.mark.parametrize("killed_at", [5, 8, 12])
@pytest.mark.parametrize("form", FORMS)
def test_a_killed_fit_ends_as_the_uninterrupted_one(
    form: str, killed_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(METHODS, form, FORMS[form])
    weights, state = learn(form, tmp_path / "whole", None)
    weights_again, state_again = learn(form, tmp_path / "killed", killed_at)
    assert torch.equal(weights, weights_again)
    assert differences(state, state_again) == []
    assert ("lambda" in state) == ("auto" in form)
    torch.save(state, tmp_path / "state.pt")
    assert differences(torch.load(tmp_path / "state.pt", weights_only=True), state) == []


@pytest.mark.parametrize("form", ["proximal", "auto, proximal"])
def test_a_killed_run_ends_as_the_uninterrupted_one(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(METHODS, form, FORMS[form])
    run(form, tmp_path / "whole")
    for kill_at in (("batch end", 5), ("train end", 8)):
        folder = tmp_path / kill_at[0]
        assert run(form, folder, kill_at) is None
        assert run(form, folder)["status"] == "finished"
        assert differences(contents(folder), contents(tmp_path / "whole")) == []
