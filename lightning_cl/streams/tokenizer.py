"""From texts to tokens: a model's own tokenizer, or one made of the training texts."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_cl import _hugging_face
from lightning_cl.errors import InputError
from lightning_cl.streams.text_data import Tokens

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
HINT = "model.backbone.name_or_path=FOLDER of weights and tokenizer, or model=hf_text_small, which needs neither"


class TextTokenizer:
    """A Hugging Face tokenizer with a length at which texts are cut.

    Args:
        tokenizer: A ``PreTrainedTokenizer``, a folder that one was saved in, or a name on the hub.
        max_length: Tokens that a text may have, special ones included; what is behind is cut off. By default what was
            saved with the tokenizer.

    Raises:
        InputError: For a tokenizer that cannot be had, or a length below 3.

    Example:
        >>> tokenizer = TextTokenizer(word_pieces(["a bad day", "a good day"]), max_length=8)
        >>> batch = tokenizer(["good", "a good day"])
        >>> batch["input_ids"].shape, batch["attention_mask"].tolist()
        (torch.Size([2, 5]), [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    """

    def __init__(self, tokenizer: Any, max_length: int | None = None) -> None:
        transformers = _hugging_face.require_transformers()
        if isinstance(tokenizer, str | Path):
            load = transformers.AutoTokenizer.from_pretrained
            tokenizer = _hugging_face.load(load, tokenizer, "tokenizer", HINT)
        if max_length is None:
            max_length = tokenizer.model_max_length
        if not isinstance(max_length, int) or not 3 <= max_length < 10**9:
            raise InputError(f"max_length={max_length!r}", "an integer >= 3", "set stream.dataset.max_length=128")
        self.tokenizer, self.max_length = tokenizer, max_length
        self.vocab_size = len(tokenizer)

    def __call__(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """A batch of texts to predict: ``input_ids`` and ``attention_mask`` (N, L)."""
        import torch

        tokens = self.encode(texts)
        return tokens.padded(torch.arange(len(tokens)))

    def encode(self, texts: Sequence[str]) -> Tokens:
        """The tokens of each text."""
        padding = self.tokenizer.pad_token_id or 0
        listed = list(texts)
        found = self.tokenizer(listed, truncation=True, max_length=self.max_length)["input_ids"] if listed else []
        # attention over no token at all is not a number
        return Tokens([ids or [padding] for ids in found], padding=padding, max_length=self.max_length)

    def save(self, folder: str | Path) -> None:
        """Write it, so that ``TextTokenizer(folder)`` is the same."""
        before = self.tokenizer.model_max_length
        self.tokenizer.model_max_length = self.max_length
        try:
            self.tokenizer.save_pretrained(str(folder))
        finally:
            self.tokenizer.model_max_length = before


def word_pieces(texts: Iterable[str], vocab_size: int = 8000) -> Any:
    """A WordPiece tokenizer made of texts alone, lower-cased, the same for the same texts in any process.

    Its vocabulary is every character, at the start of a word and within one, and then the most frequent words (ties in
    alphabetical order): a word that is not in it is spelt.

    Args:
        texts: Training texts.
        vocab_size: Tokens at most.

    Returns:
        A ``PreTrainedTokenizerFast``.

    Raises:
        InputError: For a vocabulary that does not hold the characters.
    """
    transformers = _hugging_face.require_transformers()
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words: Counter[str] = Counter()
    for text in texts:
        words.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    characters = sorted({character for word in words for character in word})
    pieces = [*SPECIAL.values(), *characters, *(f"##{character}" for character in characters)]
    if len(pieces) > vocab_size:
        raise InputError(
            f"vocab_size={vocab_size!r} for {len(characters)} characters",
            f"at least {len(pieces)}",
            f"set stream.dataset.vocab_size={2 * len(pieces)}",
        )
    frequent = sorted((word for word in words if len(word) > 1), key=lambda word: (-words[word], word))
    pieces = list(dict.fromkeys([*pieces, *frequent]))[:vocab_size]
    made = Tokenizer(
        models.WordPiece(vocab={piece: place for place, piece in enumerate(pieces)}, unk_token=SPECIAL["unk_token"])
    )
    made.normalizer, made.pre_tokenizer = normalizer, splitter
    ends = [(SPECIAL[name], pieces.index(SPECIAL[name])) for name in ("cls_token", "sep_token")]
    made.post_processor = processors.TemplateProcessing(single=f"{ends[0][0]} $A {ends[1][0]}", special_tokens=ends)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **SPECIAL)
