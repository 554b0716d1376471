"""A VAE that learns beside a model, step by step, and gives what an earlier copy of it has learnt."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cl.finetuning.vae import VAE
from lightning_cl.functional.seeding import generator
from lightning_cl.functional.vae import Decoder


class ReplayGenerator:
    """The VAE, its Adam, the decoder of the task before, and all random numbers.

    Works in fp32 outside autocast, and on the device of the inputs. In several processes all draw alike and each
    takes its share; gradients are averaged.

    Args:
        hidden, latent, decoder: See :class:`~lightning_cl.finetuning.VAE`; it is made at the first :meth:`step`.
        lr: Of Adam.
        seed: Of initial weights, generated inputs and training noise.
    """

    def __init__(self, hidden: Sequence[int], latent: int, decoder: Decoder, lr: float, seed: int) -> None:
        self.options: dict[str, Any] = {"hidden": list(hidden), "latent": latent, "decoder": decoder}
        self.lr, self.seed = lr, seed
        self.vae: VAE | None = None
        self.past_decoder: nn.Module | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self._random = generator(seed, "noise")

    @property
    def nbytes(self) -> int:
        """Bytes of weights and moments."""
        if self.vae is None or self.optimizer is None:
            return 0
        modules = [self.vae, *([self.past_decoder] if self.past_decoder is not None else [])]
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        parameters = [parameter for module in modules for parameter in module.parameters()]
        return sum(tensor.nbytes for tensor in [*parameters, *moments])

    def keep(self, *, moments: bool) -> None:
        """What is learnt by now is what :meth:`sample` gives from now on; Adam begins anew unless ``moments``."""
        assert self.vae is not None
        self.past_decoder = copy.deepcopy(self.vae.decoder)
        if not moments:
            self.optimizer = torch.optim.Adam(self.vae.parameters(), lr=self.lr)

    @torch.no_grad()
    def sample(self, n: int, device: torch.device, rank: int = 0, world: int = 1) -> Tensor:
        """This process's n of the inputs that the kept decoder gives, (n, *input_shape)."""
        assert self.vae is not None
        assert self.past_decoder is not None
        self._move(device)
        return self.vae.sample(self._noise(n, device, rank, world), self.past_decoder)

    def step(self, x: Tensor, replayed: Tensor | None, weights: tuple[float, float], trainer: Any = None) -> None:
        """One step of Adam on the weighted losses of current and replayed inputs."""
        rank, world = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        if self.vae is None:
            self._make(list(x.shape[1:]))
        self._move(x.device)
        assert self.vae is not None
        assert self.optimizer is not None
        n = len(x)
        inputs = x if replayed is None else torch.cat([x, replayed])
        losses = self.vae(inputs, self._noise(len(inputs), x.device, rank, world))
        loss = losses[:n].mean()
        if replayed is not None:
            loss = weights[0] * loss + weights[1] * losses[n:].mean()
        self.optimizer.zero_grad()
        loss.backward()
        if world > 1:
            for parameter in self.vae.parameters():
                parameter.grad = trainer.strategy.reduce(parameter.grad, reduce_op="mean")
        self.optimizer.step()

    def _noise(self, n: int, device: torch.device, rank: int, world: int) -> Tensor:
        # the default dtype inside a training step may be another one ("bf16-true")
        drawn = torch.randn(n * world, self.options["latent"], generator=self._random, dtype=torch.float32)
        return drawn[rank::world].to(device)

    def _make(self, input_shape: list[int]) -> None:
        self.vae = VAE(input_shape, **self.options, generator=generator(self.seed, "weights"))
        self.optimizer = torch.optim.Adam(self.vae.parameters(), lr=self.lr)

    def _move(self, device: torch.device) -> None:
        assert self.vae is not None
        assert self.optimizer is not None
        if next(self.vae.parameters()).device == device:
            return
        self.vae.to(device)
        self.optimizer.load_state_dict(self.optimizer.state_dict())  # its tensors follow the parameters
        if self.past_decoder is not None:
            self.past_decoder.to(device)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and primitives only; nothing that can be tuned."""
        state: dict[str, Any] = {"random": self._random.get_state(), "vae": None, "past_decoder": None}
        if self.vae is not None and self.optimizer is not None:
            state["vae"] = dict(self.vae.state_dict())
            state["input_shape"] = list(self.vae.input_shape)
            state["optimizer"] = self.optimizer.state_dict()["state"]
        if self.past_decoder is not None:
            state["past_decoder"] = dict(self.past_decoder.state_dict())
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Read what :meth:`state_dict` returned.

        Raises:
            RuntimeError: If the widths are others.
        """
        self._random.set_state(state["random"].cpu())
        self.vae = self.optimizer = self.past_decoder = None
        if state["vae"] is None:
            return
        self._make(state["input_shape"])
        assert self.vae is not None
        assert self.optimizer is not None
        self.vae.load_state_dict(state["vae"])
        moments = {i: {key: value.clone() for key, value in of.items()} for i, of in state["optimizer"].items()}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        if state["past_decoder"] is not None:
            self.past_decoder = copy.deepcopy(self.vae.decoder)
            self.past_decoder.load_state_dict(state["past_decoder"])
