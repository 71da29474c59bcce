"""OpenAI's API as values: which request is possible, and what an answer, a piece of it or an error looks like."""
