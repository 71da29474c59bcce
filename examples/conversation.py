"""A text that grows line by line: the peers keep its attention cache, so that each turn computes only what is new.

    python examples/conversation.py scripts/demo_model ID@HOST:PORT

Every line from standard input is appended to the text and continued; "undo" forgets the last turn.
"""

from __future__ import annotations

import argparse
import sys

from blockswarm.client import AutoSwarmModelForCausalLM
from transformers import AutoTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a local folder or a Hugging Face id")
    parser.add_argument("initial_peer", help="any peer of the swarm, ID@HOST:PORT")
    parser.add_argument("--max-length", type=int, default=512, help="room for the whole text, in tokens")
    parser.add_argument("--max-new-tokens", type=int, default=20, help="for each turn")
    arguments = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoSwarmModelForCausalLM.from_pretrained(arguments.model, initial_peers=[arguments.initial_peer])
    turns = [0]
    with model.session(max_length=arguments.max_length) as session:
        for line in sys.stdin:
            if line.strip() == "undo":
                session.rewind(turns.pop() if len(turns) > 1 else 0)
                continue
            turns.append(session.position)
            new_ids = tokenizer(line.rstrip("\n"), return_tensors="pt", add_special_tokens=False).input_ids
            before = session.position + new_ids.shape[1]
            session.generate(new_ids, max_new_tokens=arguments.max_new_tokens, do_sample=False)
            print(tokenizer.decode(session.tokens[0, before:], skip_special_tokens=True), flush=True)
    model.close()


if __name__ == "__main__":
    main()
