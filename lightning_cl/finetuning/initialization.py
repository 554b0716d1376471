"""Initial weights other than PyTorch's own."""

from torch import nn


def xavier_uniform(module: nn.Module) -> None:
    r"""Draw the weights of every Linear layer anew, and set its bias to zero (Glorot & Bengio 2010).

    .. math:: W \sim U(-a, a), \quad a = \sqrt{6 / (n_{in} + n_{out})}

    From torch's global generator, as PyTorch's own initialization. For a head that grows, n_out counts the rows there
    are; give the classes from the start (``head="fixed"``) where a protocol wants them all to count.

    Args:
        module: Changed in place, with all its submodules.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> xavier_uniform(layer)
        >>> bool((layer.weight.abs() <= 2**0.5).all()), layer.bias.tolist()
        (True, [0.0])
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear) and layer.weight.numel():
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
