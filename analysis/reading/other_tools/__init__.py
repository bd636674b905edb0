"""Result files of guidellm, aiperf and `vllm bench serve`, read into runs.

Does no statistics, and knows neither levels of users nor limits."""
