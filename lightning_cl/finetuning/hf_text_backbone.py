"""Text encoders from Hugging Face."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_cl import _hugging_face
from lightning_cl.errors import InputError, shortened

HINT = "model.backbone.name_or_path=FOLDER with config.json and weights, or model=hf_text_small, which needs neither"


class HFTextBackbone(nn.Module):
    """A Hugging Face text encoder (``AutoModel``; the encoder of T5 and BART) whose token states are pooled.

    What stands behind the tokens' states (BERT's pooler) is left out. Weights are fp32. Padding is masked in attention
    and pooling, so that it does not change the features, whatever token it is.

    Args:
        input_shape: Shape of one sample, (the most tokens of a text,); a text may have no more than the model can take.
        name_or_path: A local folder that ``save_pretrained`` has written, or a name on the hub, which is downloaded
            where there is a network. None with ``config``.
        config: The plain values of a Hugging Face config, with ``model_type``, for a model with random weights:
            ``{"model_type": "bert", "hidden_size": 64, ...}``; over those of ``name_or_path`` where both are given
            (``{"hidden_dropout_prob": 0.0}``).
        pooling: ``"mean"`` over the tokens' states, ``"cls"``: the first token's, or ``"auto"``: what a
            sentence-transformers folder says, else the mean, which suits every architecture.
        weights: False: the network of ``name_or_path`` with random weights.

    Raises:
        InputError: For neither or an unknown ``name_or_path`` or ``config``, weights that cannot be had or do not fit,
            texts that are too long; in ``forward`` for tokens that the model does not know, on the CPU.
    """

    def __init__(
        self,
        input_shape: Sequence[int] | None = None,
        name_or_path: str | None = None,
        *,
        config: Mapping[str, Any] | None = None,
        pooling: Literal["auto", "cls", "mean"] = "auto",
        weights: bool = True,
    ) -> None:
        super().__init__()
        transformers = _hugging_face.require_transformers()
        if pooling not in ("auto", "cls", "mean"):
            raise InputError(f"pooling={pooling!r}", "'auto', 'cls' or 'mean'", "leave it out for 'auto'")
        if name_or_path is None and not config:
            raise InputError("name_or_path=None and config=None", "a folder, a name on the hub, or a config", HINT)
        self.pooling = _pooling_of(name_or_path) if pooling == "auto" else pooling
        #: whether the folder says that its features are used at length 1; they are scored so, and trained as they are
        self.unit_length = name_or_path is not None and _normalizes(name_or_path)
        if name_or_path is None:
            self.network = _from_config(transformers, dict(config or {}))
        else:
            self.network = _from_name(transformers, name_or_path, dict(config or {}), weights)
        settings = self.network.config
        if settings.is_encoder_decoder:
            self.network = self.network.get_encoder()
        if getattr(self.network, "pooler", None) is not None:
            # what the loss does not reach has no gradient, which DDP refuses, and no importance
            self.network.pooler = None
        self.feature_dim: int = settings.hidden_size
        self.padding: int = getattr(settings, "pad_token_id", None) or 0
        self.vocab_size: int = settings.vocab_size
        self._check_length(input_shape, settings)
        self.spec: dict[str, Any] = {
            "name": "hf_text",
            "input_shape": None if input_shape is None else list(input_shape),
            "config": _plain(settings),
            "pooling": self.pooling,
        }

    def forward(self, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Features (N, feature_dim) of ``input_ids`` (N, L), alone or in a mapping with ``attention_mask`` (N, L)."""
        known = dict(inputs) if isinstance(inputs, Mapping) else {"input_ids": inputs}
        ids = known.pop("input_ids")
        mask = known.pop("attention_mask", None)
        mask = ids != self.padding if mask is None else mask.bool()
        if ids.device.type == "cpu" and not torch.compiler.is_compiling():
            self._check_tokens(ids)
        # a memory pads with zeros, whichever token the model pads with
        states = self.network(
            input_ids=ids.masked_fill(~mask, self.padding), attention_mask=mask.long(), **known
        ).last_hidden_state
        if self.pooling == "cls":
            return states[:, 0]
        weights = mask.unsqueeze(2).to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1).clamp(min=1)

    def _check_tokens(self, ids: Tensor) -> None:
        if ids.numel() and int(ids.max()) >= self.vocab_size:
            raise InputError(
                f"token {int(ids.max())} for a model that knows {self.vocab_size}",
                "texts in the model's own tokens",
                "give both the same name: stream.dataset.tokenizer and model.backbone.name_or_path",
            )

    def _check_length(self, input_shape: Sequence[int] | None, settings: Any) -> None:
        limit = getattr(settings, "max_position_embeddings", None)
        if input_shape is not None and len(input_shape) != 1:
            raise InputError(f"input_shape={list(input_shape)}", "(tokens,), of texts", "use stream=text_files")
        if input_shape is not None and isinstance(limit, int) and 0 < limit < input_shape[0]:
            raise InputError(
                f"texts of up to {input_shape[0]} tokens for a model that takes {limit}",
                f"at most {limit}",
                f"set stream.dataset.max_length={limit}",
            )


def _plain(settings: Any) -> dict[str, Any]:
    """A config as a checkpoint may hold it, without where it came from."""
    values = json.loads(settings.to_json_string(use_diff=False))
    return {key: value for key, value in values.items() if key not in ("_name_or_path", "transformers_version")}


def _from_config(transformers: Any, values: dict[str, Any]) -> Any:
    kind = values.pop("model_type", None)
    known = list(transformers.CONFIG_MAPPING.keys())
    if kind not in known:
        import difflib

        close = difflib.get_close_matches(str(kind), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "config={'model_type': 'bert', ...}"
        raise InputError(f"config with model_type={kind!r}", "one that transformers knows", hint)
    try:
        settings = transformers.AutoConfig.for_model(kind, **values)
        return transformers.AutoModel.from_config(settings).float()
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise InputError(
            f"config {values!r} of {kind!r} ({shortened(error)})", "a config of which a model can be built", HINT
        ) from error


def _from_name(transformers: Any, name: str, changes: dict[str, Any], weights: bool) -> Any:
    what = "name_or_path="
    settings = _hugging_face.load(transformers.AutoConfig.from_pretrained, name, what, HINT, **changes)
    if not weights:
        return transformers.AutoModel.from_config(settings).float()
    load = transformers.AutoModel.from_pretrained
    model, found = _hugging_face.load(load, name, what, HINT, config=settings, output_loading_info=True)
    missing = sorted(key for key in found["missing_keys"] if not key.startswith("pooler."))
    if missing or found["mismatched_keys"]:
        wrong = missing or sorted(str(key) for key in found["mismatched_keys"])
        raise InputError(
            f"name_or_path={name!r}, whose weights lack {len(wrong)} entries of the model, such as {wrong[0]!r}",
            "weights of the model in config.json",
            "save the folder anew, or set model.backbone.weights=false",
        )
    return model.float()


def _pooling_of(name: str | None) -> Literal["cls", "mean"]:
    """What sentence-transformers has written beside the model; the mean by default."""
    if name is None:
        return "mean"
    path = _hugging_face.file_beside(name, "1_Pooling/config.json")
    found = {} if path is None else json.loads(path.read_text())
    return "cls" if found.get("pooling_mode_cls_token") else "mean"


def _normalizes(name: str) -> bool:
    """Whether sentence-transformers scales the pooled states to length 1."""
    path = _hugging_face.file_beside(name, "modules.json")
    found = [] if path is None else json.loads(path.read_text())
    return any(str(part.get("type", "")).endswith(".Normalize") for part in found)
