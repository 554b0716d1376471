"""THE list: a method enters the matrix by its name, its callbacks, and its plain loop.

``FOREIGN`` methods run on anybody's module on a Trainer of its own, ``OURS`` on :class:`~lightning_cl.FineTuningModule`
on such a Trainer, ``SEQUENCE`` in ``run_sequence``. What stands behind a comma is a variant of the YAML's method.
"""

from collections.abc import Callable
from typing import Any

from lightning_cl import (
    AGEM,
    DER,
    DGR,
    EEIL,
    EMA,
    ERACE,
    EWC,
    GEM,
    L2,
    L2SP,
    LUCIR,
    MAS,
    SI,
    WA,
    Adapters,
    BalancedFineTuning,
    BiC,
    FreezingSchedule,
    GDumb,
    ICaRL,
    KroneckerEWC,
    LwF,
    PODNet,
    Replay,
    RWalk,
    ShrinkAndPerturb,
    UniformSampling,
    WiSEFT,
)
from tests.parity import classifier_loops as ours
from tests.parity import loops
from tests.parity import memory_loops as memory

VAE: dict[str, Any] = {"hidden": [8], "latent": 2, "decoder": "gaussian", "lr": 0.01}
#: what manual optimization hides from a Fisher
TOLD: dict[str, Any] = {"logits_fn": lambda module, batch: module.outputs(batch)}

#: some options, so that two groups are enough to show what they do
RECIPES: dict[str, dict[str, Any]] = {
    "gradual_unfreeze": {},
    "last_k": {"k": 1},
    "linear_probe": {},
    "lp_ft": {"fraction": 0.5},
    "surgical_first": {"head": False},
}


def recipe(name: str, **options: Any) -> tuple[Callable[..., Any], Callable[..., loops.Plain]]:
    """Of a freezing schedule."""
    return (
        lambda: FreezingSchedule(recipe=name, recipe_options=options, table=False),
        lambda m: loops.PlainPhases(m, name, **options),
    )


FOREIGN: dict[str, tuple[Callable[..., Any], Callable[..., loops.Plain]]] = {
    "ewc": (lambda **told: EWC(5.0, **told), lambda m: loops.PlainEWC(m, 5.0)),
    "ewc, proximal": (
        lambda **told: EWC(5.0, apply="proximal", **told),
        lambda m: loops.PlainEWC(m, 5.0, proximal=True),
    ),
    "online_ewc": (lambda **told: EWC(5.0, variant="online", **told), lambda m: loops.PlainEWC(m, 5.0)),
    "kfac_ewc": (lambda **told: KroneckerEWC(5.0, **told), lambda m: loops.PlainKFAC(m, 5.0)),
    "l2": (lambda: L2(1.0), lambda m: loops.PlainL2(m, 1.0)),
    "l2sp": (lambda: L2SP(1.0, beta=0.5), lambda m: loops.PlainL2SP(m, 1.0, 0.5)),
    "mas": (lambda: MAS(0.5), lambda m: loops.PlainMAS(m, 0.5)),
    "rwalk": (lambda **told: RWalk(2.0, interval=3, **told), lambda m: loops.PlainRWalk(m, 2.0, 3)),
    "si": (lambda: SI(5.0), lambda m: loops.PlainSI(m, 5.0)),
    "er": (lambda: Replay(9, batch_size=4, name="er"), lambda m: memory.PlainReplay(m, "er")),
    "er, separate": (
        lambda: Replay(9, batch_size=4, mode="separate", name="er"),
        lambda m: memory.PlainSeparate(m, "er"),
    ),
    "er_ace": (lambda: ERACE(9, batch_size=4), lambda m: memory.PlainERACE(m, "er_ace")),
    "der": (lambda: DER(9, 0.3, batch_size=4), lambda m: memory.PlainDER(m, "der", 0.3, 0.0)),
    "derpp": (
        lambda: DER(9, 0.3, 0.7, batch_size=4, name="derpp"),
        lambda m: memory.PlainDER(m, "derpp", 0.3, 0.7),
    ),
    "lwf": (lambda: LwF(), lambda m: memory.PlainLwF(m)),
    "a_gem": (lambda: AGEM(9, batch_size=4, name="a_gem"), lambda m: memory.PlainProjection(m, "a_gem")),
    "gem": (lambda: GEM(9), lambda m: memory.PlainProjection(m, "gem")),
    "dgr": (lambda: DGR(**VAE), lambda m: memory.PlainDGR(m, **VAE)),
    "shrink_and_perturb": (lambda: ShrinkAndPerturb(), lambda m: loops.PlainShrink(m)),
    "lora": (lambda: Adapters("lora", rank=2), lambda m: loops.PlainAdapters(m, "lora")),
    "ia3": (lambda: Adapters("ia3", rank=2), lambda m: loops.PlainAdapters(m, "ia3")),
    "ema": (lambda: EMA(0.7), lambda m: loops.PlainEMA(m, 0.7)),
    "wise_ft": (lambda: WiSEFT(0.5, alphas=[]), lambda m: loops.PlainWiSEFT(m)),
    "auto_freeze": (lambda: FreezingSchedule("auto", table=False), lambda m: loops.PlainPhases(m, "auto")),
    **{name: recipe(name, **options) for name, options in RECIPES.items()},
    "freezing": (lambda: FreezingSchedule(until_epoch=1), lambda m: loops.PlainFreezing(m)),
}

COSINE = {"head_layer": "cosine"}
OURS: dict[str, tuple[Callable[[], list[Any]], type[ours.PlainClassifier], dict[str, Any]]] = {
    "icarl": (lambda: [ICaRL(16)], ours.PlainICaRL, {}),
    "bic": (lambda: [BiC(16, validation_fraction=0.4)], ours.PlainBiC, {}),
    "wa": (lambda: [WA(), Replay(12)], ours.PlainWA, {}),
    "wa, distillation": (lambda: [WA(distillation=True), Replay(12)], ours.PlainPaperWA, {}),
    "eeil": (lambda: [EEIL(12)], ours.PlainEEIL, {}),
    "lucir": (lambda: [LUCIR(12)], ours.PlainLUCIR, COSINE),
    "podnet": (lambda: [PODNet(12)], ours.PlainPODNet, COSINE),
}
SEQUENCE: dict[str, tuple[Callable[[], list[Any]], type[ours.PlainClassifier], dict[str, Any]]] = {
    "balanced_fine_tuning": (lambda: [Replay(12), BalancedFineTuning(2)], ours.PlainClassifier, {}),
    "gdumb": (lambda: [GDumb(12)], ours.PlainGDumb, {"reinitialize": True}),
    "uniform": (lambda: [UniformSampling()], ours.PlainClassifier, {}),
}
METHODS = [*FOREIGN, *OURS, *SEQUENCE]

LOSS = "it changes the loss, and there is none in manual optimization"
MANUAL = r"automatic_optimization=False; expected automatic optimization.*HINT: return the loss"
TEXT = "a VAE makes no token ids"
NEED_THE_LOSS = [
    *("er, separate", "er_ace", "der", "derpp", "lwf", "dgr", "a_gem", "gem"),
    *("icarl", "bic", "wa, distillation", "eeil", "lucir", "podnet"),
]
#: (method, condition or None for any, kind of batch or None for any) -> the message of a refusal, and why it may be
REFUSED: dict[tuple[str, str | None, str | None], tuple[str, str]] = {
    **{(method, "manual", None): (MANUAL, LOSS) for method in NEED_THE_LOSS},
    ("auto_freeze", "manual", None): (
        r"automatic_optimization=False; expected a training_step that returns the loss\. HINT: give loss_fn",
        "it chooses by gradients of the loss",
    ),
    ("dgr", None, "hf"): (r"a VAE generates no token ids|floating inputs|a generator makes nothing else", TEXT),
}


def refusal(method: str, condition: str, structure: str) -> str | None:
    """The message with which this is refused; None where it has to work."""
    for given in ((method, condition, None), (method, None, structure)):
        if given in REFUSED:
            return REFUSED[given][0]
    return None
