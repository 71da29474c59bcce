"""OpenAI's API as values: checks requests, and shapes answers, their chunks and errors."""
