"""The checkpoints that the benchmarks measure: Llama, random weights that bfloat16 has as well, stored in float32.

python -m benchlib.checkpoints tiny FOLDER
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

SHAPES: Mapping[str, Mapping[str, int]] = {
    "tiny": {
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "vocab_size": 512,
    },
    "small": {
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "vocab_size": 32000,
    },
    "wide-1024": {
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "vocab_size": 512,
    },
    "wide-2048": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 6,
        "num_attention_heads": 16,
        "vocab_size": 512,
    },
    "wide-4096": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 3,
        "num_attention_heads": 32,
        "vocab_size": 512,
    },
}
CONTEXT_TOKENS = 2048
SEED = 0


def write(name: str, folder: Path) -> None:
    """Write one of `SHAPES`; it never ends a text by itself, so every run makes as many tokens as it is asked for."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(SEED)
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = LlamaConfig(**SHAPES[name], max_position_embeddings=CONTEXT_TOKENS, **ends)
    LlamaForCausalLM(config).bfloat16().float().save_pretrained(folder)


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]))
