"""Tokenizers for tiny models."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def byte_tokenizer(**options: Any) -> PreTrainedTokenizerFast:
    """Token i + 1 is byte i (in the order of tokenizers' alphabet); 0 is padding."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0} | {letter: index + 1 for index, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", **options)


def fallback_tokenizer(pieces: Iterable[str], *decoders_after: Any, **options: Any) -> PreTrainedTokenizerFast:
    """Like Llama's: characters that none of its pieces has are tokens of one byte each. `<pad>` is special."""
    names = dict.fromkeys([*(f"<0x{byte:02X}>" for byte in range(256)), *pieces])
    vocabulary = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *decoders_after]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens([AddedToken("<pad>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", **options)


def in_bytes(text: bytes) -> list[str]:
    """The names of the tokens of `fallback_tokenizer` for these bytes."""
    return [f"<0x{byte:02X}>" for byte in text]
