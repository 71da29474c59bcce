"""Programs leave the compiler of torch and what hangs on it out, compute the same, and can still compile."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

_SIZES = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "pad_token_id": 0,
}  # fmt: skip
_PROGRAM = """
import gc, json, sys
from blockswarm.proto.lean_imports import lighten_imports
lighten_imports()
lighten_imports()
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from blockswarm.peer.engine.blocks.selfcheck import check_family
config = LlamaConfig(**json.loads(sys.argv[1]))
torch.manual_seed(0)
model = LlamaForCausalLM(config).eval()
tokens = model.generate(torch.tensor([[3, 4, 5]]), max_new_tokens=8, do_sample=False, eos_token_id=None)
heavy = {"sympy.core", "scipy", "torch._dynamo.utils", "torch.distributed.tensor"}
found = {
    "route": check_family(config).name,
    "tokens": tokens.tolist(),
    "loaded": sorted(heavy & set(sys.modules)),
    "collects": gc.isenabled(),
    "compiled": torch.compile(lambda rows: rows * 2 + 1, backend="eager")(torch.ones(2)).tolist(),
    "compiler": torch._dynamo.disable.__module__,
}
print(json.dumps(found))
"""


@pytest.mark.swarm
@pytest.mark.long
def test_a_program_computes_the_same_with_fewer_imports_and_can_still_compile() -> None:
    line = [sys.executable, "-c", _PROGRAM, json.dumps(_SIZES)]
    output = subprocess.run(line, check=True, capture_output=True, text=True, timeout=300).stdout
    found = json.loads(output.splitlines()[-1])

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**_SIZES)).eval()
    expected = model.generate(torch.tensor([[3, 4, 5]]), max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert found == {
        "route": "PACKED",
        "tokens": expected.tolist(),
        "loaded": [],
        "collects": True,
        "compiled": [3.0, 3.0],
        "compiler": "torch._dynamo.decorators",
    }


_INTERRUPTED = """
import os, signal, sys
from importlib.abc import MetaPathFinder
from blockswarm.proto.lean_imports import lighten_imports

class Interrupting(MetaPathFinder):
    def find_spec(self, fullname, path, target=None):
        if fullname == "numpy.linalg":
            os.kill(os.getpid(), signal.SIGINT)

lighten_imports()
sys.meta_path.insert(0, Interrupting())
try:
    import torch
except KeyboardInterrupt:
    print("interrupted", hasattr(sys.modules["numpy"], "linalg"), signal.getsignal(signal.SIGINT).__name__)
"""
"""torch imports numpy, and goes on without it if that fails for whatever reason."""


@pytest.mark.long
def test_an_interrupt_while_a_library_is_imported_comes_when_that_is_done() -> None:
    """It was swallowed: numpy was there in part, and the program failed later, or never ended."""
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED], capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.stdout, done.stderr) == ("interrupted True default_int_handler\n", "")
