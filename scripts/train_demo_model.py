"""Train the demo model: a small byte-level Llama that writes text which looks like Python.

The text is the standard library of the Python that runs this script, so nothing has to be downloaded and nothing
is copied into the repository.  One file in twenty is held out.  A token is a byte; a context starts with BOS at the
beginning of some line, EOS ends a file.  Short windows come first because they are cheap, long ones last so that the
model can use its whole context.

    python scripts/train_demo_model.py --threads 1 --precision bfloat16

writes the folder scripts/demo_model: config, tokenizer, weights (float32 safetensors) and TRAINING.json, which says
what was reached and how.  Two idle cores need about eight minutes (float32: about twelve); the seconds recorded there
were taken on one busy core.

    python scripts/train_demo_model.py --draft --threads 1 --precision bfloat16

writes scripts/demo_draft, which guesses what that model will write: a quarter of its size, two blocks, the same
tokenizer.  It learns from the demo model's probabilities instead of from the text itself.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import sys
import sysconfig
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import rich.progress
import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

FOLDER = Path(__file__).parent
BYTES = 256
BOS, EOS, PAD = BYTES, BYTES + 1, BYTES + 2
SPECIAL_TOKENS = {BOS: "<s>", EOS: "</s>", PAD: "<pad>"}

MODEL_BLOCKS = 8
DRAFT_BLOCKS = 2
CONTEXT_TOKENS = 1024
HELD_OUT_ONE_IN = 20
HELD_OUT_TOKENS = 131_072
"""How many held-out tokens a measurement of the loss reads."""

# Character tables, generated topics and test data are no text to learn from; the rest is no part of the library.
SKIPPED_FOLDERS = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "encodings",
    "pydoc_data",
    "lib2to3",
    "__pycache__",
}


@dataclass(frozen=True)
class Phase:
    """A run of equal optimiser steps."""

    steps: int
    rows: int
    window_tokens: int


@dataclass(frozen=True)
class Corpus:
    """Tokens (uint16) of the training and of the held-out files, and where contexts may begin (line starts)."""

    train: np.ndarray
    train_starts: np.ndarray
    held_out: np.ndarray
    train_files: int
    held_out_files: int


def library_files() -> list[Path]:
    """The standard library's own modules, in an order that does not depend on the machine."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = (path.relative_to(root) for path in root.rglob("*.py"))
    kept = [path for path in paths if not SKIPPED_FOLDERS.intersection(path.parts) and "config-" not in path.parts[0]]
    return [root / path for path in sorted(kept, key=lambda path: path.as_posix())]


def is_held_out(path: Path) -> bool:
    """Whether the file's content puts it into the held-out part: stable, and independent of every other file."""
    return hashlib.sha256(path.read_bytes()).digest()[0] % HELD_OUT_ONE_IN == 0


def load_corpus(rng: np.random.Generator) -> Corpus:
    """Read the library; the files are shuffled so that neighbours in a window have nothing in common."""
    files = library_files()
    rng.shuffle(files)
    parts: dict[bool, list[np.ndarray]] = {False: [], True: []}
    for path in files:
        content = np.frombuffer(path.read_bytes(), dtype=np.uint8).astype(np.uint16)
        parts[is_held_out(path)].append(np.append(content, np.uint16(EOS)))
    train, held_out = np.concatenate(parts[False]), np.concatenate(parts[True])
    starts = np.flatnonzero((train == ord("\n")) | (train == EOS)) + 1
    return Corpus(train, starts, held_out, len(parts[False]), len(parts[True]))


def sample_windows(corpus: Corpus, phase: Phase, rng: np.random.Generator) -> torch.Tensor:
    """Random training contexts, (rows, window_tokens) int64, each BOS and then text from the start of a line."""
    last = len(corpus.train) - phase.window_tokens
    starts = rng.choice(corpus.train_starts[corpus.train_starts <= last], size=phase.rows)
    text = np.stack([corpus.train[start : start + phase.window_tokens - 1] for start in starts])
    return torch.from_numpy(np.pad(text.astype(np.int64), ((0, 0), (1, 0)), constant_values=BOS))


def build_model(blocks: int = MODEL_BLOCKS) -> transformers.LlamaForCausalLM:
    """An untrained model of the demo's shape, 6 MB in float32 with all its 8 blocks, 1.7 MB with the draft's 2."""
    config = transformers.LlamaConfig(
        vocab_size=BYTES + len(SPECIAL_TOKENS),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=blocks,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_TOKENS,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        tie_word_embeddings=False,
    )
    return transformers.LlamaForCausalLM(config)


def build_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A tokenizer whose ids are the bytes of the text in UTF-8; a context begins with BOS."""
    # Byte-level tokenizers spell bytes as printable characters; this is the order that makes id == byte.
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(BYTES) if byte not in printable]
    spelling = {byte: chr(byte) for byte in printable} | {byte: chr(BYTES + i) for i, byte in enumerate(others)}
    vocabulary = {spelling[byte]: byte for byte in range(BYTES)}
    vocabulary |= {token: number for number, token in SPECIAL_TOKENS.items()}

    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    bos = SPECIAL_TOKENS[BOS]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, BOS)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=SPECIAL_TOKENS[EOS],
        pad_token=SPECIAL_TOKENS[PAD],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT_TOKENS,
    )


def build_optimizers(model: torch.nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks (it needs far fewer steps than AdamW), AdamW for everything else."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    others = [p for name, p in model.named_parameters() if not (p.ndim == 2 and ".layers." in name)]
    return [
        torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=6e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def learning_rate_factor(progress: float) -> float:
    """Warm up over 2 % of the steps, stay, then fall in a straight line to zero over the last half."""
    return min(progress / 0.02, 1.0, 2 * (1 - progress))


def loss_of(model: torch.nn.Module, windows: torch.Tensor, precision: torch.dtype) -> torch.Tensor:
    """Mean loss of predicting each token of `windows` (B, T) from those before it, nats per byte."""
    with torch.autocast("cpu", precision, enabled=precision is not torch.float32):
        return model(input_ids=windows, labels=windows).loss


def loss_from(
    teacher: torch.nn.Module, model: torch.nn.Module, windows: torch.Tensor, precision: torch.dtype
) -> torch.Tensor:
    """Mean cross-entropy of `model` against the teacher's probabilities of each next token, nats per byte."""
    with torch.autocast("cpu", precision, enabled=precision is not torch.float32):
        with torch.no_grad():
            wanted = teacher(input_ids=windows).logits.float().softmax(dim=-1)
        guessed = model(input_ids=windows).logits.float()
    return torch.nn.functional.cross_entropy(guessed.flatten(0, 1), wanted.flatten(0, 1))


def train(
    model: torch.nn.Module,
    corpus: Corpus,
    phases: list[Phase],
    rng: np.random.Generator,
    loss_on: Callable[[torch.Tensor], torch.Tensor],
) -> float:
    """Train in place to make `loss_on` windows small; returns its mean over the last fifty steps, nats per byte."""
    optimizers = build_optimizers(model)
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    plan = [phase for phase in phases for _ in range(phase.steps)]
    losses: list[float] = []
    columns = (
        *rich.progress.Progress.get_default_columns(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("loss {task.fields[loss]:.3f} nats/byte"),
    )
    with rich.progress.Progress(*columns) as progress:
        task = progress.add_task("training", total=len(plan), loss=math.nan)
        for step, phase in enumerate(plan):
            factor = learning_rate_factor((step + 1) / len(plan))
            for optimizer, base_rates in zip(optimizers, rates, strict=True):
                for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
                    group["lr"] = rate * factor
            loss = loss_on(sample_windows(corpus, phase, rng))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
            progress.update(task, advance=1, loss=float(np.mean(losses[-50:])))
            if (step + 1) % 100 == 0:
                progress.console.print(f"step {step + 1}: {np.mean(losses[-50:]):.4f} nats/byte")
    return float(np.mean(losses[-50:]))


def held_out_windows(corpus: Corpus, window_tokens: int) -> tuple[torch.Tensor, ...]:
    """Batches (rows, window_tokens) of windows that are spread evenly over files the model has not seen."""
    text_tokens = window_tokens - 1
    starts = np.linspace(0, len(corpus.held_out) - text_tokens, HELD_OUT_TOKENS // text_tokens).astype(int)
    text = np.stack([corpus.held_out[start : start + text_tokens] for start in starts]).astype(np.int64)
    windows = torch.nn.functional.pad(torch.from_numpy(text), (1, 0), value=BOS)
    return windows.split(max(1, 4096 // window_tokens))


@torch.inference_mode()
def held_out_loss(model: torch.nn.Module, corpus: Corpus, window_tokens: int) -> float:
    """Mean loss in float32 over held-out windows, nats per byte."""
    batches = held_out_windows(corpus, window_tokens)
    losses = [loss_of(model, batch, torch.float32).item() for batch in batches]
    return float(np.average(losses, weights=[len(batch) for batch in batches]))


@torch.inference_mode()
def agreement(teacher: torch.nn.Module, model: torch.nn.Module, corpus: Corpus, window_tokens: int) -> float:
    """The share of held-out places where both find the same token likeliest."""
    same = [
        (teacher(input_ids=batch).logits.argmax(-1) == model(input_ids=batch).logits.argmax(-1)).float().mean().item()
        for batch in held_out_windows(corpus, window_tokens)
    ]
    return float(np.mean(same))


def save(folder: Path, model: transformers.LlamaForCausalLM, training: dict[str, object]) -> None:
    """Write everything that `from_pretrained` reads, and TRAINING.json."""
    model.generation_config = transformers.GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD)
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    (folder / "TRAINING.json").write_text(json.dumps(training, indent=2) + "\n", encoding="utf-8")


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the demo model on the standard library's sources.")
    parser.add_argument("--draft", action="store_true", help="train the draft model of the demo model that is there")
    parser.add_argument("--output", type=Path, help="[default: demo_model or demo_draft beside this file]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1000, help="optimiser steps of 4096 tokens")
    parser.add_argument("--threads", type=int, default=2, help="one is faster where other programs use the processor")
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the matrix products in training; bfloat16 is twice as fast on processors that have it",
    )
    options = parser.parse_args(arguments)
    options.output = options.output or FOLDER / ("demo_draft" if options.draft else "demo_model")
    return options


def main(arguments: list[str]) -> None:
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    long_steps = options.steps // 10
    phases = [Phase(options.steps - long_steps, 16, 256), Phase(long_steps, 4, CONTEXT_TOKENS)]

    corpus = load_corpus(rng)
    print(f"{len(corpus.train):,} bytes to learn from, {len(corpus.held_out):,} held out")
    precision = getattr(torch, options.precision)
    model = build_model(DRAFT_BLOCKS if options.draft else MODEL_BLOCKS)
    teacher = transformers.LlamaForCausalLM.from_pretrained(FOLDER / "demo_model").eval() if options.draft else None
    started = time.perf_counter()
    if teacher is not None:
        train_loss = train(model, corpus, phases, rng, lambda windows: loss_from(teacher, model, windows, precision))
    else:
        train_loss = train(model, corpus, phases, rng, lambda windows: loss_of(model, windows, precision))
    seconds = time.perf_counter() - started
    model.eval()
    held_out = {str(window): round(held_out_loss(model, corpus, window), 4) for window in (256, CONTEXT_TOKENS)}
    training = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "train_loss_nats_per_byte": round(train_loss, 4),
        "held_out_loss_nats_per_byte_by_window": held_out,
        **({} if teacher is None else {"agreement_with_the_model": round(agreement(teacher, model, corpus, 256), 4)}),
        "seed": options.seed,
        "phases": [asdict(phase) for phase in phases],
        "precision": options.precision,
        "threads": options.threads,
        "seconds": round(seconds),
        "text": f"the standard library of Python {platform.python_version()}",
        "train_bytes": len(corpus.train),
        "train_files": corpus.train_files,
        "held_out_bytes": len(corpus.held_out),
        "held_out_files": corpus.held_out_files,
        "torch": torch.__version__.partition("+")[0],
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
    }
    save(options.output, model, training)
    print(json.dumps(training, indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
