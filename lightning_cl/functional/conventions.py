r"""How the lambda of other codes' EWC maps to ours.

Ours is :math:`\frac{\lambda}{2}\sum A(\theta-\theta^*)^2` with per-sample means (see :mod:`.penalty`). Others leave out
the 1/2, take other labels, square batch means, and keep the tasks apart, add them up or average them. Read in their
sources; docs/importance.md has the table.
"""

from typing import Any, NamedTuple


class Convention(NamedTuple):
    """A code's penalty in our words: ``factor`` times its lambda is ours."""

    labels: str
    factor: float
    variant: str
    gamma: float | str | None = None


# gamma None: the code's own, which is the same as ours
CONVENTIONS: dict[str, Convention] = {
    "van_de_ven": Convention("exact", 1.0, "offline"),
    "van_de_ven_online": Convention("exact", 1.0, "online"),
    "gt_ripl": Convention("predicted", 2.0, "offline"),
    "gt_ripl_online": Convention("predicted", 2.0, "online", 1.0),
    "mammoth": Convention("probability_weighted", 2.0, "online"),
    "facil": Convention("batch_mean", 1.0, "average"),
    "pycil": Convention("batch_mean", 1.0, "average", "tasks"),
    "libcontinual": Convention("batch_mean", 1.0, "average", "tasks"),
    "avalanche": Convention("batch_mean", 2.0, "offline"),
    "avalanche_online": Convention("batch_mean", 2.0, "online"),
}


def our_settings(code: str, lambda_: float, gamma: float | None = None) -> dict[str, Any]:
    """Arguments of :class:`lightning_cl.EWC` with which its penalty is that of another code.

    Equal are the gradients of the penalties at any parameters, and their values too where the code keeps one anchor
    (with several, merging them into one drops a constant).

    ========================= ======================================================================================
    van_de_ven, ..._online    GMvandeVen/continual-learning; all labels; online: it decays once more when it is used
    gt_ripl, ..._online       GT-RIPL/Continual-Learning-Benchmark (Hsu et al. 2018), ``n_fisher_sample`` set: batch 1
    mammoth                   aimagelab/mammoth, ewc_on
    facil                     mmasana/FACIL with ``fi_sampling_type=true``, ``alpha`` = gamma; heads left out there
    pycil                     G-U-N/PyCIL with equal tasks; it clips F at 1e-4, which this does not
    libcontinual              RL-VIG/LibContinual, as PyCIL; its loss is over the new task's classes only
    avalanche, ..._online     ContinualAI/avalanche, ``decay_factor`` = gamma
    ========================= ======================================================================================

    Where ``labels`` is ``batch_mean``, lambda depends on the batch size of the importance's loader: take theirs.

    Args:
        code: A name of this table.
        lambda_: Their lambda.
        gamma: Their decay or mixing weight, where they have one; 1, or FACIL's 0.5, by default.

    Raises:
        ValueError: for an unknown code, or a gamma where the code has none.

    Example:
        >>> our_settings("mammoth", 0.7)
        {'lambda_': 1.4, 'labels': 'probability_weighted', 'variant': 'online', 'gamma': 1.0}
    """
    if code not in CONVENTIONS:
        raise ValueError(f"code={code!r}; expected one of {', '.join(CONVENTIONS)}. HINT: see docs/importance.md")
    labels, factor, variant, fixed = CONVENTIONS[code]
    if gamma is not None and (variant == "offline" or fixed is not None):
        raise ValueError(f"gamma={gamma!r} with {code!r}; expected None. HINT: this code has no such setting")
    settings: dict[str, Any] = {"lambda_": factor * lambda_, "labels": labels, "variant": variant}
    if variant == "offline":
        return settings
    settings["gamma"] = fixed if fixed is not None else gamma if gamma is not None else 0.5 if code == "facil" else 1.0
    if code == "van_de_ven_online":
        settings["lambda_"] *= settings["gamma"]
    return settings
