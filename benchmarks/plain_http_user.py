"""The usual way to load a streaming API with Locust: HttpUser, `stream=True`, `iter_lines`. The baseline."""

import json
import time

from locust import HttpUser, task

TOKENS = 100


class Plain(HttpUser):
    """Asks, reads every line, notes the first token."""

    @task
    def ask(self) -> None:
        body = {
            "model": "scripted",
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": TOKENS,
            "stream": True,
        }
        began = time.perf_counter()
        first = None
        with self.client.post(
            "/v1/chat/completions", json=body, stream=True, catch_response=True
        ) as response:
            for line in response.iter_lines():
                if line.startswith(b"data: ") and line != b"data: [DONE]":
                    choices = json.loads(line[6:])["choices"]
                    if first is None and choices and choices[0]["delta"].get("content"):
                        first = time.perf_counter() - began
