"""No secret leaves the process that was given it: not to a file, not to the screen, not to the web page, not
to another process. Every place that takes a secret gets one of its own."""

import contextlib
import json
import signal
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testing.load_tests import Finished, RunLocust, locust_command, post
from testing.processes import ROOT, clean_environment, free_port, listening, simulator, until
from testing.servers.imitation import ImitatedAnswer, Imitation, serve_in_thread

KEY = "sk-k3y-of-api"
SECRETS = {
    "api key": KEY,
    "host": "h0st@p4ss/word#1",
    "metrics_url": "m3trics@p4ss?x",
    "query of metrics_url": "qu3ry-of-metrics",
    "second metrics_url": "m3trics-of-two",
    "gpu_metrics": "gpu@p4ss:y",
    "extra_headers": "h3ader-value",
    "extra_body": "b0dy-value",
}
PARTS = ("p4ss", "word#1", *SECRETS.values())
"""What must be nowhere: each secret, and what is left of a password that was split at the wrong @."""


def flags(url: str) -> dict[str, str]:
    def named(user: str, secret: str) -> str:
        return url.replace("://", f"://{user}:{SECRETS[secret]}@")

    first = f"{named('bob', 'metrics_url')}/metrics?token={SECRETS['query of metrics_url']}"
    return {
        "metrics_url": f"{first},{named('eve', 'second metrics_url')}/metrics",
        "gpu_metrics": f"{named('carl', 'gpu_metrics')}/metrics",
        "extra_headers": json.dumps({"X-Team-Key": SECRETS["extra_headers"]}),
        "extra_body": json.dumps({"provider": {"api_key": SECRETS["extra_body"]}}),
    }


def host(url: str) -> str:
    return url.replace("://", f"://ann:{SECRETS['host']}@")


def leaks(reports: Path, *said: bytes) -> list[tuple[str, str]]:
    """Returns the place and the secret of each leak. The places must exist."""
    files = [path for path in reports.rglob("*") if path.is_file()]
    assert len(files) >= 3
    places = {path.name: path.read_bytes() for path in files}
    places |= {f"output {number}": text for number, text in enumerate(said)}
    assert all(said), "nothing was said"
    return [(name, secret) for name, text in places.items() for secret in PARTS if secret.encode() in text]


def test_a_run_keeps_every_secret_to_itself_and_uses_it(run_locust: RunLocust) -> None:
    with simulator("--api-key", KEY) as url:
        run = run_locust(host(url), levels="2", **flags(url), environment={"LOADTEST_API_KEY": KEY})
    assert run.code == 0, run.said
    assert {row["outcome"] for row in run.rows()} == {"ok"}
    assert {row["engine"] for row in run.rows("server.jsonl") if row["running"] is not None} == {"1/0", "2/0"}
    assert run.info["settings"]["extra_body"] == {"provider": {"api_key": "(not recorded)"}}
    assert leaks(run.reports, run.said.encode()) == []


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("host", {"levels": "1"}, "cannot be reached"),
        ("metrics_url", {"metrics_url": f"ftp://bob:{SECRETS['metrics_url']}@host/metrics"}, "--metrics-url"),
        ("metrics_url", {"metrics_url": f'["http://bob:{SECRETS["metrics_url"]}@host'}, "--metrics-url"),
        ("gpu_metrics", {"gpu_metrics": f"ftp://carl:{SECRETS['gpu_metrics']}@host"}, "--gpu-metrics"),
        ("extra_headers", {"extra_headers": f'{{"X-Key": {SECRETS["extra_headers"]}'}, "--extra-headers"),
        (
            "extra_headers",
            {"extra_headers": f'{{"X-Key": ["{SECRETS["extra_headers"]}"]}}'},
            "--extra-headers",
        ),
        ("extra_body", {"extra_body": f'{{"api_key": "{SECRETS["extra_body"]}'}, "--extra-body"),
    ],
)
def test_what_is_refused_is_not_repeated(
    run_locust: RunLocust, simulated: str, name: str, change: dict[str, str], sentence: str
) -> None:
    url = host(f"http://127.0.0.1:{free_port()}") if name == "host" else simulated
    run = run_locust(url, **{"levels": "1", **change})
    assert run.code == 2
    assert sentence in run.said
    assert [secret for secret in PARTS if secret in run.said] == []


def test_a_server_that_repeats_a_secret_in_its_error_is_quoted_without_it(run_locust: RunLocust) -> None:
    asked = iter(range(10**6))

    def refuse(body: dict[str, Any]) -> ImitatedAnswer | None:
        words = f"Incorrect API key provided: {body['provider']['api_key']}. See the manual."
        return (400, {"error": {"message": words}}) if next(asked) > 12 else None

    imitation = Imitation(models=[{"id": "m", "max_model_len": 4096}], refusal=refuse)
    with serve_in_thread(imitation) as url:
        run = run_locust(url, levels="1", extra_body=flags(url)["extra_body"])
    errors = {row["error"] for row in run.rows() if row["error"]}
    assert any("Incorrect API key provided: (not recorded). See the manual." in error for error in errors)
    assert leaks(run.reports, run.said.encode()) == []


@contextlib.contextmanager
def recording(port: int) -> Iterator[tuple[int, bytearray]]:
    """Forwards connections to a port, and yields its own port and the bytes that went either way."""
    bytes_seen = bytearray()
    listener = socket.create_server(("127.0.0.1", 0))

    def copy(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                bytes_seen.extend(data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                near = listener.accept()[0]
                far = socket.create_connection(("127.0.0.1", port))
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=copy, args=pair, daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], bytes_seen
    finally:
        listener.close()


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as response:
        return bytes(response.read())


@contextlib.contextmanager
def running(words: list[str], *more: str) -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(
        [*words, *more],
        cwd=ROOT,
        env=clean_environment(LOADTEST_API_KEY=KEY),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def test_workers_and_the_web_page_are_told_no_secret(tmp_path: Path) -> None:
    port, web = str(free_port()), str(free_port())
    page = f"http://127.0.0.1:{web}"
    run = Finished(0, "", tmp_path / "reports")
    with simulator("--api-key", KEY) as url, recording(int(port)) as (recorded_port, messages):
        words = locust_command(run.reports, host(url), **flags(url))
        words.remove("--headless")
        bind = ["--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", port]
        join = ["--worker", "--master-host", "127.0.0.1", "--master-port", str(recorded_port)]
        with running(words, *bind, "--web-host", "127.0.0.1", "--web-port", web) as master:
            until(30, lambda: listening(int(web)))
            with running(words, *join) as worker:
                until(30, lambda: json.loads(fetch(f"{page}/stats/requests"))["workers"] != [])
                post(f"{page}/swarm", user_count="2", spawn_rate="2", host=url)
                until(40, lambda: run.reports.is_dir() and len(run.rows()) > 5)
                pages = ("", "/stats/requests", "/exceptions", "/logs")
                shown = b"".join(fetch(page + path) for path in pages)
                stop = urllib.request.Request(f"{page}/stop", method="POST")
                urllib.request.urlopen(stop, timeout=20).read()
                until(30, lambda: run.info["ended_unix_s"] is not None)
                master.send_signal(signal.SIGINT)
                worker.send_signal(signal.SIGINT)
                said = master.communicate(timeout=30)[0], worker.communicate(timeout=30)[0]
    assert b"seatcount_WorkerReport" in messages
    assert {row["outcome"] for row in run.rows()} - {"cancelled"} == {"ok"}
    assert leaks(run.reports, bytes(messages), shown, *said) == []


def test_a_worker_that_lacks_a_secret_says_which_one(run_locust: RunLocust, tmp_path: Path) -> None:
    port = free_port()
    with simulator() as url:
        words = locust_command(tmp_path / "other", None)
        words.remove("--headless")
        join = ["--worker", "--master-host", "127.0.0.1", "--master-port", str(port)]
        with running(words, *join):
            bind = ["--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", str(port)]
            run = run_locust(
                url, *bind, "--expect-workers", "1", levels="1", extra_headers='{"X-Key": "h3ader"}'
            )
    assert run.code == 2
    assert "--extra-headers: this process does not know the value of 'X-Key'" in run.said
