"""Result files of guidellm, aiperf and `vllm bench serve`, read into runs.

Knows no level, no wall and no statistics."""
