"""Continue a text with a swarm, word by word as it comes.

python examples/generate.py scripts/demo_model ID@HOST:PORT "class Reader:"
"""

from __future__ import annotations

import argparse

from blockswarm.client import AutoSwarmModelForCausalLM
from transformers import AutoTokenizer, TextStreamer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a local folder or a Hugging Face id")
    parser.add_argument("initial_peer", help="any peer of the swarm, ID@HOST:PORT")
    parser.add_argument("prompt")
    parser.add_argument("--max-new-tokens", type=int, default=40)
    arguments = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoSwarmModelForCausalLM.from_pretrained(arguments.model, initial_peers=[arguments.initial_peer])
    inputs = tokenizer(arguments.prompt, return_tensors="pt")
    streamer = TextStreamer(tokenizer, skip_special_tokens=True)
    model.generate(**inputs, max_new_tokens=arguments.max_new_tokens, do_sample=False, streamer=streamer)
    model.close()


if __name__ == "__main__":
    main()
