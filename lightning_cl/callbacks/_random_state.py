"""Random state that survives a checkpoint; Lightning saves none."""

from typing import Any

from lightning.pytorch.callbacks import Callback

from lightning_cl import _compat


class RandomState(Callback):
    """Puts the global generators' states into checkpoints, and restores them in ``on_fit_start``.

    Restored later, in ``on_train_start``, a resumed run differs from an uninterrupted one: the loaders' iterators are
    made in between. It belongs behind the callbacks that draw random numbers in ``on_fit_start`` themselves.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None
        self._fitting = False

    def state_dict(self) -> dict[str, Any]:
        """States of torch's, CUDA's, numpy's and Python's generators."""
        return {"version": 1, **_compat.rng_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until the fit starts; sharded strategies load them right behind that."""
        self._loaded = state_dict
        if self._fitting:
            self._restore()

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Restore."""
        self._fitting = True
        self._restore()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """What is loaded next is for another fit."""
        self._fitting = False

    def _restore(self) -> None:
        if self._loaded is not None:
            _compat.set_rng_state(self._loaded)
            self._loaded = None
