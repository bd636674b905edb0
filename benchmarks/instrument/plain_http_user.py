"""The usual way to load a streaming API with Locust (HttpUser, `stream=True`, `iter_lines`), as a baseline.

Locust itself publishes no TTFT. This file notes the times of the tokens, as a user of Locust would, and
writes their quantiles to the file that the environment variable PLAIN_RESULT names.
"""

import json
import os
import time
from array import array
from itertools import pairwise
from pathlib import Path

import numpy as np
from locust import HttpUser, events, task

_TOKENS = 100

_ttft_s, _gap_s = array("d"), array("d")


class Plain(HttpUser):
    """A user who asks, reads every line and notes the time of each token."""

    @task
    def ask(self) -> None:
        body = {
            "model": "scripted",
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": _TOKENS,
            "stream": True,
        }
        began = time.perf_counter()
        came = []
        with self.client.post(
            "/v1/chat/completions", json=body, stream=True, catch_response=True
        ) as response:
            for line in response.iter_lines():
                if line.startswith(b"data: ") and line != b"data: [DONE]":
                    choices = json.loads(line[6:])["choices"]
                    if choices and choices[0]["delta"].get("content"):
                        came.append(time.perf_counter())
        if came:
            _ttft_s.append(came[0] - began)
            _gap_s.extend(later - earlier for earlier, later in pairwise(came))


def _publish(**_: object) -> None:
    if "PLAIN_RESULT" in os.environ and _ttft_s:
        p50, p99 = np.percentile(_ttft_s, [50, 99])
        figures = {"ttft_p50_s": p50, "ttft_p99_s": p99, "gap_p99_s": np.percentile(_gap_s, 99)}
        Path(os.environ["PLAIN_RESULT"]).write_text(json.dumps(figures))


events.quitting.add_listener(_publish)
