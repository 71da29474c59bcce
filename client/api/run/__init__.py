"""From a request to one call of `generate` and back: prompt, logits processors, and where each answer's text ends."""
