"""Learning one task after another, so that it can be killed at any moment and goes on."""

from lightning_cl.errors import Stopped
from lightning_cl.sequence.loop import learn_task, open_run, run_sequence
from lightning_cl.sequence.settings import Settings
from lightning_cl.sequence.state import SequenceState, Stage

__all__ = ["SequenceState", "Settings", "Stage", "Stopped", "learn_task", "open_run", "run_sequence"]
