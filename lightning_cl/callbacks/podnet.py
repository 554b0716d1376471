"""PODNet: distillation of pooled outputs of every stage, with a classifier of several proxies per class."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Unpack

from torch import Tensor, nn

from lightning_cl.callbacks._memory_options import MemoryOptions
from lightning_cl.callbacks._patch import InstancePatch
from lightning_cl.callbacks._stages import depth_stages
from lightning_cl.callbacks._teacher_method import TeacherMethod, weight
from lightning_cl.errors import InputError
from lightning_cl.functional.lucir import less_forget_loss
from lightning_cl.functional.podnet import nca_loss, pooled_distance


class PODNet(TeacherMethod):
    r"""Holds what every stage of the backbone puts out, with space pooled away, and the features themselves.

    .. math:: L = L_{class} + \sqrt{\frac{|C_{old}| + |C_{new}|}{|C_{new}|}} \Big(
        \frac{\lambda_c}{S} \sum_{s=1}^S L_{spatial}^s + \lambda_f (1 - \langle \bar h^{old}, \bar h \rangle) \Big)

    (Douillard et al. 2020, arXiv:2004.13513, with the distances of the authors' code.) :math:`L_{spatial}` is
    :func:`~lightning_cl.functional.pooled_distance`: maps are pooled over width and height, flat outputs taken as they
    are. :math:`L_{class}` is the NCA loss (:func:`~lightning_cl.functional.nca_loss`) on the cosine head, from the
    first task on, or the module's own. ``method=podnet`` sets the cosine head with ten proxies per class. The paper's
    fine-tuning of the classifier is ``method=[podnet,balanced_fine_tuning] callbacks.balanced_fine_tuning.tune=head``.
    Memory samples are mixed into the batch.

    State: the memory, and one copy of backbone and head.

    Not supported: modules that are not :class:`~lightning_cl.FineTuningModule`; tasks without a new class; manual
    optimization; the NCA loss on a module whose loss is not cross entropy.

    Args:
        memory_size: Samples kept in all, >= 0; None with ``memory_bytes``.
        lambda_c: Weight of the stages, the mean over them.
        lambda_f: Weight of the features.
        stages: Names of the stages inside the backbone, such as ``["network.layer1", "network.layer2"]``; by default
            the backbone's own parts one behind the other (a ResNet's four groups of blocks, an MLP's Linear layers).
        loss: ``"nca"``, or ``"module"`` for the module's own.
        margin: :math:`\delta` of the NCA loss.
        policy, max_per_class: What is kept, see :class:`~lightning_cl.memory.Memory`.
        batch_size: Memory samples per step (and process); as many as the current batch has by default.
        seed: Seed of what is stored and what is drawn.
        name, consolidate, state_path: See :class:`~lightning_cl.callbacks._method.MethodCallback`.
        **memory: ``policy_options``, ``memory_bytes``, ``max_age``, ``id_fn``, ``storage``, ``path``, ``keep_states``,
            ``stores``, ``deletion_log``, ``features_fn``, ``losses_fn``: see
            :class:`~lightning_cl.callbacks._memory_method.MemoryMethod`.

    Raises:
        InputError: For values outside these; before training for what cannot work.
    """

    needs_new_classes = True

    def __init__(
        self,
        memory_size: int | None = None,
        *,
        lambda_c: float = 3.0,
        lambda_f: float = 1.0,
        stages: Sequence[str] | None = None,
        loss: Literal["nca", "module"] = "nca",
        margin: float = 0.6,
        policy: str = "class_balanced",
        max_per_class: int | None = None,
        batch_size: int | None = None,
        seed: int = 0,
        name: str = "podnet",
        consolidate: Literal["auto", "manual"] = "auto",
        state_path: str | Path | None = None,
        **memory: Unpack[MemoryOptions],
    ) -> None:
        super().__init__(
            memory_size,
            policy=policy,
            max_per_class=max_per_class,
            batch_size=batch_size,
            seed=seed,
            name=name,
            consolidate=consolidate,
            state_path=state_path,
            **memory,
        )
        if loss not in ("nca", "module"):
            raise InputError(f"loss={loss!r}", "'nca' or 'module'", "leave it out for 'nca'")
        if stages is not None and (isinstance(stages, str) or not stages):
            raise InputError(f"stages={stages!r}", "a list of names, or None", "try stages=['layer1', 'layer2']")
        self.lambda_c, self.lambda_f = weight("lambda_c", lambda_c), weight("lambda_f", lambda_f)
        self.stage_names = list(stages) if stages is not None else None
        self.loss, self.margin = loss, weight("margin", margin)
        self._nca: InstancePatch | None = None

    @property
    def scale(self) -> float:
        """What both weights are multiplied by in this task."""
        if not self.new_classes:
            return 0.0
        return math.sqrt((len(self.old_classes) + len(self.new_classes)) / len(self.new_classes))

    def _watched(self, module: Any) -> dict[str, nn.Module]:
        found = depth_stages(module.backbone, self.stage_names) if self.lambda_c else {}
        return {"features": module.backbone, **{f"stage {name}": part for name, part in found.items()}}

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Put the NCA loss in the place of the module's."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit" or self.loss == "module":
            return
        if not hasattr(pl_module.head, "similarities"):
            raise InputError(
                "loss='nca' on a linear head", "the cosine head", "set model.head_layer=cosine, or loss='module'"
            )
        if pl_module.loss is not nn.functional.cross_entropy:
            raise InputError(
                "loss='nca' on a module with a loss of its own", "cross entropy, which is replaced", "use loss='module'"
            )
        head = pl_module.head

        # there, and not in the listener, so that terms of other callbacks stay, and the logs show what is trained on
        def nca(logits: Tensor, y: Tensor) -> Tensor:
            return nca_loss(logits, y, margin=head.eta * self.margin)

        self._nca = InstancePatch(pl_module, "loss", nca)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave module and DataModule as they were."""
        super().teardown(trainer, pl_module, stage)
        if self._nca is not None:
            self._nca.remove()
        self._nca = None

    def _reads_teacher(self) -> bool:
        return bool(self.teacher) and self.lambda_c + self.lambda_f > 0 and bool(self.old_classes)

    def _loss(self, module: Any, batch: Any, loss: Tensor, now: dict[str, Tensor], old: dict[str, Tensor]) -> Tensor:
        features = now["features"]
        stages = [name for name in now if name != "features"]
        shapeless = [name for name in stages if not isinstance(now[name], Tensor)]
        if shapeless:
            raise InputError(
                f"{shapeless[0]!r} of PODNet, which puts out a {type(now[shapeless[0]]).__name__}",
                "submodules of the backbone that put out tensors",
                "name them: callbacks.podnet.stages=[...], or set callbacks.podnet.lambda_c=0",
            )
        if old and self.lambda_c:
            distances = sum(pooled_distance(now[name], old[name]) for name in stages)
            loss = loss + self.scale * self.lambda_c / len(stages) * distances
        if old and self.lambda_f:
            loss = loss + self.scale * self.lambda_f * less_forget_loss(features, old["features"])
        return loss
