"""Turns a request into calls of `generate` and back: prompts, logits processors, and the end of each answer's text."""
