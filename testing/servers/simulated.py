"""Runs the embedded server as a process and asks it over plain HTTP."""

import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from testing.processes import ROOT

SIMULATED_MODEL = "Qwen3-1.7B"


@dataclass
class SimulatedServer:
    process: "subprocess.Popen[str]"
    announced: str
    url: str
    tls: ssl.SSLContext | None = None

    def connect(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.url)
        assert parts.hostname
        if parts.scheme == "https":
            return http.client.HTTPSConnection(parts.hostname, parts.port, timeout=20, context=self.tls)
        return http.client.HTTPConnection(parts.hostname, parts.port, timeout=20)

    def send(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, bytes, dict[str, str]]:
        connection = self.connect()
        connection.request(method, urlsplit(self.url).path.removesuffix("/v1") + path, body, headers)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response.status, content, dict(response.getheaders())

    def chat(self, body: dict[str, object], **headers: str) -> tuple[int, bytes]:
        status, content, _ = self.send("POST", "/v1/chat/completions", json.dumps(body).encode(), **headers)
        return status, content

    def answer(self, body: dict[str, object]) -> dict[str, object]:
        status, content = self.chat(body)
        assert status == 200, content
        answer = json.loads(content)
        assert isinstance(answer, dict)
        return answer

    def metric(self, name: str, **labels: str) -> float:
        _, content, _ = self.send("GET", "/metrics")
        for family in text_string_to_metric_families(content.decode()):
            for one in family.samples:
                if one.name == name and labels.items() <= one.labels.items():
                    return one.value
        raise AssertionError(f"{name} is missing")

    def wait_for(self, name: str, value: float, **labels: str) -> None:
        deadline_s = time.monotonic() + 10
        while self.metric(name, **labels) != value:
            assert time.monotonic() < deadline_s, f"{name} never became {value}"
            time.sleep(0.02)


@contextmanager
def simulated_server(*flags: str, environment: dict[str, str] | None = None) -> Iterator[SimulatedServer]:
    process = subprocess.Popen(
        [sys.executable, "-m", "loadtest.simulator", "--port", "0", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | (environment or {}),
        cwd=ROOT,
    )
    with process:
        assert process.stdout
        announced = process.stdout.readline()
        try:
            assert announced, process.stderr and process.stderr.read()
            yield SimulatedServer(process, announced, announced.split()[-1])
        finally:
            process.send_signal(signal.SIGTERM)


def chat_body(text: str = "What is the capital of France?", **fields: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 4, "ignore_eos": True, **fields}


def sse_events(content: bytes) -> list[str]:
    lines = content.decode().split("\n\n")
    assert lines.pop() == ""
    return [line.removeprefix("data: ") for line in lines]


def stream_chunks(content: bytes) -> list[dict[str, object]]:
    parsed = sse_events(content)
    assert parsed.pop() == "[DONE]"
    return [json.loads(event) for event in parsed]


def stream_deltas(content: bytes, kind: str) -> list[str]:
    found = [choice["delta"] for chunk in stream_chunks(content) for choice in chunk["choices"]]  # type: ignore[attr-defined]
    return [delta[kind] for delta in found if kind in delta and "role" not in delta]
