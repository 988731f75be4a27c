"""KV caches: prompts and generated tokens in memory, and attention over them during a decode step."""
