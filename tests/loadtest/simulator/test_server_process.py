"""The embedded server as a process: clients that leave, limits, keys, signals and its command line."""

import json
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from loadtest.simulator.presets import PRESETS
from testing.processes import ROOT
from testing.servers.simulated import (
    SIMULATED_MODEL,
    SimulatedServer,
    chat_body,
    simulated_server,
    stream_deltas,
)


def test_clients_that_reset_in_the_middle_do_not_stop_the_engine(server: SimulatedServer) -> None:
    """Resets land between the end of a connection and the end of its handler now and then."""
    address = urlsplit(server.url)
    content = json.dumps(chat_body(stream=True, max_tokens=400)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
    for number in range(150):
        with socket.create_connection((address.hostname, address.port), timeout=10) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.sendall(head.encode() + content)
            client.recv(1000)
            time.sleep(number % 7 / 1000)
    assert server.answer(chat_body())["choices"]


def test_a_client_that_leaves_frees_its_slot(server: SimulatedServer) -> None:
    connection = server.connect()
    connection.request("POST", "/v1/chat/completions", json.dumps(chat_body(max_tokens=20000, stream=True)))
    response = connection.getresponse()
    response.readline()
    server.wait_for("vllm:num_requests_running", 1)
    response.close()
    connection.close()
    server.wait_for("vllm:num_requests_running", 0)
    assert server.metric("vllm:kv_cache_usage_perc") == 0


def test_clients_that_leave_at_any_moment_leave_no_trace() -> None:
    with simulated_server() as server:
        parts = urlsplit(server.url)
        for number in range(40):
            raw = json.dumps(chat_body(f"user {number}", max_tokens=500, stream=number % 3 > 0)).encode()
            with socket.create_connection((parts.hostname, parts.port)) as connection:
                head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(raw)}\r\n\r\n"
                connection.sendall(head.encode() + raw)
                time.sleep(number % 5 * 0.01)
                if number % 2:  # with a reset
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        server.wait_for("vllm:num_requests_running", 0)
        assert server.metric("vllm:generation_tokens_total") > 0
        server.process.send_signal(signal.SIGTERM)
        assert server.process.communicate(timeout=10) == ("", "")


def test_the_queue_limit_answers_503() -> None:
    with simulated_server("--max-num-queued-reqs", "1") as busy:
        connection = busy.connect()
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(chat_body(max_tokens=9999, stream=True))
        )
        connection.getresponse().readline()
        status, content = busy.chat(chat_body())
        assert status == 503
        assert json.loads(content)["error"]["type"] == "Service Unavailable"
        assert busy.metric("vllm:admission_rejections_total", reason="max_num_queued_reqs") == 1
        connection.close()


def test_a_small_pool_preempts_and_everybody_still_finishes() -> None:
    with simulated_server("--num-gpu-blocks-override", "21", "--max-num-seqs", "8") as small:
        assert "pool 320 tokens" in small.announced
        ended: list[int] = []

        def one(number: int) -> None:
            usage = small.answer(chat_body(f"user {number}", max_tokens=60, seed=number))["usage"]
            ended.append(usage["completion_tokens"])  # type: ignore[index]

        users = [threading.Thread(target=one, args=(number,)) for number in range(8)]
        for user in users:
            user.start()
        for user in users:
            user.join()
        assert ended == [60] * 8
        assert small.metric("vllm:num_preemptions_total") > 0
        assert small.metric("vllm:cache_config_info", num_gpu_blocks_override="21") == 1


@pytest.mark.parametrize(
    ("flags", "environment"), [(["--api-key", "s3cret"], {}), ([], {"VLLM_API_KEY": "s3cret"})]
)
def test_a_key_guards_the_api_only(flags: list[str], environment: dict[str, str]) -> None:
    with simulated_server(*flags, environment=environment) as guarded:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"}):
            status, content = guarded.chat(chat_body(), **headers)
            assert (status, content) == (401, b'{"error":"Unauthorized"}')
        assert guarded.send("GET", "/v1/models")[0] == 401
        assert guarded.chat(chat_body(), Authorization="Bearer s3cret")[0] == 200
        assert guarded.send("GET", "/metrics")[0] == 200
        assert guarded.send("GET", "/health")[0] == 200


def test_a_root_path_prefixes_everything() -> None:
    with simulated_server("--root-path", "/gateway/a/") as prefixed:
        assert prefixed.url.endswith("/gateway/a/v1")
        assert prefixed.answer(chat_body())["model"] == SIMULATED_MODEL
        assert prefixed.metric("vllm:num_requests_running") == 0


def test_https_with_a_certificate(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )  # fmt: skip
    with simulated_server("--certfile", str(certificate), "--keyfile", str(key)) as secure:
        assert secure.url.startswith("https://")
        secure.tls = ssl.create_default_context(cafile=str(certificate))
        assert len(stream_deltas(secure.chat(chat_body(stream=True))[1], "content")) == 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_quickly_and_quietly_while_it_streams(number: signal.Signals) -> None:
    with simulated_server() as ending:
        connection = ending.connect()
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(chat_body(max_tokens=9999, stream=True))
        )
        connection.getresponse().readline()
        asked_s = time.monotonic()
        ending.process.send_signal(number)
        output, errors = ending.process.communicate(timeout=10)
        assert time.monotonic() - asked_s < 2
        assert ending.process.returncode == 0
        assert (output, errors) == ("", "")
        connection.close()


def simulator(*flags: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "loadtest.simulator", *flags],
        capture_output=True,
        text=True,
        timeout=20,
        cwd=ROOT,
        check=False,
    )


def test_list_names_every_preset() -> None:
    listed = simulator("--list")
    assert listed.returncode == 0
    assert [line.split()[0] for line in listed.stdout.splitlines()] == list(PRESETS)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--preset", "gpt-9"], "There is no preset 'gpt-9'"),
        (["--max-num-batched-tokens", "16"], "must be at least max_num_seqs"),
        (["--max-num-seqs", "9999", "--max-num-batched-tokens", "9999"], "Nothing is left for the KV cache"),
        (["--root-path", "gateway"], "--root-path must start with a slash"),
        (["--certfile", "/nonexistent.pem"], "No such file"),
    ],
)
def test_what_cannot_be_served_is_one_sentence_and_exit_2(flags: list[str], message: str) -> None:
    refused = simulator("--port", "0", *flags)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_a_taken_port_is_exit_2(server: SimulatedServer) -> None:
    refused = simulator("--port", str(urlsplit(server.url).port))
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
