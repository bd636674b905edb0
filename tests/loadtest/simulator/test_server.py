"""The embedded server over real sockets: vLLM 0.32's wire format, and the engine in real time."""

import http.client
import json
import os
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from loadtest.simulator.presets import PRESETS, find_preset
from loadtest.simulator.text import block_hashes, render_prompt, tokenize, write_answer
from testing.processes import ROOT

MODEL = "Qwen3-1.7B"
STEP_S = PRESETS["qwen3-1.7b-t4"].engine_config().step_base_s


@dataclass
class Server:
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
def serving(*flags: str, environment: dict[str, str] | None = None) -> Iterator[Server]:
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
            yield Server(process, announced, announced.split()[-1])
        finally:
            process.send_signal(signal.SIGTERM)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


def body(text: str = "What is the capital of France?", **fields: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 4, "ignore_eos": True, **fields}


def events(content: bytes) -> list[str]:
    lines = content.decode().split("\n\n")
    assert lines.pop() == ""
    return [line.removeprefix("data: ") for line in lines]


def chunks(content: bytes) -> list[dict[str, object]]:
    parsed = events(content)
    assert parsed.pop() == "[DONE]"
    return [json.loads(event) for event in parsed]


def deltas(content: bytes, kind: str) -> list[str]:
    found = [choice["delta"] for chunk in chunks(content) for choice in chunk["choices"]]  # type: ignore[attr-defined]
    return [delta[kind] for delta in found if kind in delta and "role" not in delta]


def test_it_announces_preset_pool_and_url(server: Server) -> None:
    pattern = r"Serving Qwen3-1\.7B \(simulated, preset qwen3-1\.7b-t4, pool 8\d{4} tokens\) on (\S+)\n"
    match = re.fullmatch(pattern, server.announced)
    assert match
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/v1", match[1])


def test_a_stream_has_vllms_bytes(server: Server) -> None:
    status, content = server.chat(
        body(stream=True, stream_options={"include_usage": True}), **{"X-Request-Id": "abc"}
    )
    assert status == 200
    created = chunks(content)[0]["created"]
    head = f'{{"id":"chatcmpl-abc","object":"chat.completion.chunk","created":{created},"model":"{MODEL}",'
    role, *contents, last, usage, done = events(content)
    assert role == (
        head + '"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,'
        '"finish_reason":null}],"prompt_token_ids":null,"prompt_text":null}'
    )
    assert len(contents) == 3
    for event in contents:
        rest = event.removeprefix(head + '"choices":[{"index":0,"delta":{"content":"')
        assert re.fullmatch(r' ?\w+"\},"logprobs":null,"finish_reason":null,"token_ids":null\}\]\}', rest)
    rest = last.removeprefix(head + '"choices":[{"index":0,"delta":{"content":"')
    assert re.fullmatch(
        r' \w+"\},"logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":null\}\]\}', rest
    )
    prompt = json.loads(usage)["usage"]["prompt_tokens"]
    assert usage == (
        head + f'"choices":[],"usage":{{"prompt_tokens":{prompt},"total_tokens":{prompt + 4},'
        '"completion_tokens":4,"completion_tokens_details":{"reasoning_tokens":0}},'
        '"system_fingerprint":"vllm-0.32.0-seatcount"}'
    )
    assert done == "[DONE]"


def test_without_usage_the_last_chunk_is_signed(server: Server) -> None:
    _, content = server.chat(body(stream=True))
    *_, last = chunks(content)
    assert last["system_fingerprint"] == "vllm-0.32.0-seatcount"
    assert list(last) == ["id", "object", "created", "model", "choices", "system_fingerprint"]


def test_running_usage_counts_from_zero_to_all(server: Server) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    _, content = server.chat(body(stream=True, stream_options=options))
    usages = [chunk["usage"] for chunk in chunks(content)]
    counts = [usage["completion_tokens"] for usage in usages]  # type: ignore[index]
    assert counts == [0, 1, 2, 3, 4, 4]
    assert list(usages[0]) == [  # type: ignore[call-overload]
        "prompt_tokens",
        "total_tokens",
        "completion_tokens",
        "completion_tokens_details",
    ]


def test_a_whole_answer_says_what_its_stream_says(server: Server) -> None:
    whole = server.answer(body())
    _, content = server.chat(body(stream=True))
    choice = whole["choices"][0]  # type: ignore[index]
    assert choice["message"]["content"] == "".join(deltas(content, "content"))
    assert choice["finish_reason"] == "length"
    assert choice["message"]["reasoning"] is None
    assert list(whole) == [
        *("id", "object", "created", "model", "choices", "service_tier", "system_fingerprint", "usage"),
        *("prompt_logprobs", "prompt_token_ids", "prompt_text", "kv_transfer_params"),
        *("ec_transfer_params", "metrics"),
    ]


@pytest.mark.parametrize(
    "asked", [{"chat_template_kwargs": {"enable_thinking": True}}, {"enable_thinking": True}]
)
def test_thinking_streams_reasoning_before_the_answer(server: Server, asked: dict[str, object]) -> None:
    wanted = body(max_tokens=10, stream=True, stream_options={"include_usage": True}, **asked)
    _, content = server.chat(wanted)
    reasoning, answer = deltas(content, "reasoning"), deltas(content, "content")
    # The marks around the thought are two tokens without a chunk.
    assert (len(reasoning), len(answer)) == (5, 3)
    usage = chunks(content)[-1]["usage"]
    assert usage["completion_tokens"] == 10  # type: ignore[index]
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 5}  # type: ignore[index]
    message = server.answer(wanted | {"stream": False})["choices"][0]["message"]  # type: ignore[index]
    assert (message["reasoning"], message["content"]) == ("".join(reasoning), "".join(answer))


def test_a_short_thought_is_cut_before_the_answer(server: Server) -> None:
    _, content = server.chat(body(max_tokens=3, stream=True, enable_thinking=True))
    assert len(deltas(content, "reasoning")) == 2
    assert deltas(content, "content") == []


def test_without_ignore_eos_the_answer_ends_by_itself(server: Server) -> None:
    asked = body(ignore_eos=False, max_tokens=2000, stream=True)
    text = next(
        text for text in (f"question {number}" for number in range(99)) if len(natural_answer(text)) < 100
    )
    asked["messages"] = [{"role": "user", "content": text}]
    _, content = server.chat(asked)
    last = chunks(content)[-1]["choices"][0]  # type: ignore[index]
    assert last["finish_reason"] == "stop"
    assert last["delta"] == {"content": ""}
    assert deltas(content, "content") == natural_answer(text)
    cut = server.answer(asked | {"stream": False, "max_tokens": 7})
    assert cut["choices"][0]["finish_reason"] == "length"  # type: ignore[index]
    assert cut["choices"][0]["message"]["content"] == "".join(natural_answer(text)[:7])  # type: ignore[index]


def natural_answer(text: str) -> list[str]:
    prompt = render_prompt([("user", text)], thinks=True, thinking=False)
    return write_answer(prompt, seed=0, max_tokens=2000, forced=False, thinking=False).tokens


def test_answers_follow_from_prompt_and_seed(server: Server) -> None:
    def text(**fields: object) -> str:
        return str(server.answer(body(max_tokens=8, **fields))["choices"][0]["message"]["content"])  # type: ignore[index]

    assert text() == text(temperature=1.0, top_p=0.5)
    assert text() != text(seed=1)
    assert text() != text(text="Another question?")


def test_max_completion_tokens_wins(server: Server) -> None:
    usage = server.answer(body(max_completion_tokens=2))["usage"]
    assert usage["completion_tokens"] == 2  # type: ignore[index]


def test_content_parts_count_like_text(server: Server) -> None:
    parts = [{"type": "text", "text": "What is the capital of France?"}]
    whole = server.answer(body() | {"messages": [{"role": "user", "content": parts}]})
    assert whole["usage"] == server.answer(body())["usage"]


@pytest.mark.parametrize(
    ("changes", "status", "kind", "param", "message"),
    [
        (
            {"model": "nobody"},
            404,
            "NotFoundError",
            "model",
            "The model `nobody` does not exist. Valid aliases: Qwen3-1.7B.",
        ),
        (
            {"max_tokens": 32769},
            400,
            "BadRequestError",
            "max_tokens",
            "max_tokens=32769 cannot be greater than max_model_len=32768. Please request fewer output "
            "tokens. (parameter=max_tokens, value=32769)",
        ),
        (
            {"messages": [{"role": "user", "content": "word " * 32800}]},
            400,
            "BadRequestError",
            "input_tokens",
            "This model's maximum context length is 32768 tokens. However, your prompt contains at least "
            "32769 input tokens, which exceeds this limit even without any output tokens. Please reduce "
            "the length of the input prompt. (parameter=input_tokens, value=32769)",
        ),
        (
            {"max_tokens": -1},
            400,
            "BadRequestError",
            "max_tokens",
            "max_tokens must be at least 1, got -1. (parameter=max_tokens, value=-1)",
        ),
    ],
)
def test_refusals_have_vllms_shape(
    server: Server, changes: dict[str, object], status: int, kind: str, param: str, message: str
) -> None:
    got, content = server.chat(body() | changes)
    assert got == status
    error = {"message": message, "type": kind, "param": param, "code": status}
    assert json.loads(content) == {"error": error}


@pytest.mark.parametrize(
    "raw",
    [
        b"{not json",
        b"[]",
        b"{}",
        b'{"messages":[]}',
        b'{"messages":["x"]}',
        b'{"messages":[{"role":"user"}],"max_tokens":"9"}',
    ],
)
def test_malformed_requests_are_bad_requests(server: Server, raw: bytes) -> None:
    status, content, _ = server.send("POST", "/v1/chat/completions", raw)
    assert status == 400
    assert json.loads(content)["error"]["type"] == "Bad Request"


def test_a_prompt_near_the_context_is_clipped_to_it() -> None:
    with serving("--max-model-len", "64") as small:
        usage = small.answer(body("word " * 40, max_tokens=64))["usage"]
        assert usage["total_tokens"] == 64  # type: ignore[index]


def test_unknown_paths_and_methods_are_refused_as_vllm_does(server: Server) -> None:
    assert server.send("GET", "/nowhere")[:2] == (404, b'{"detail":"Not Found"}')
    assert server.send("GET", "/v1/chat/completions")[:2] == (405, b'{"detail":"Method Not Allowed"}')


def test_models_say_that_it_is_simulated(server: Server) -> None:
    (card,) = json.loads(server.send("GET", "/v1/models")[1])["data"]
    assert (card["id"], card["owned_by"], card["max_model_len"]) == (MODEL, "seatcount-simulator", 32768)
    assert server.metric("seatcount_simulator_info", preset="qwen3-1.7b-t4") == 1
    assert server.send("GET", "/health")[:2] == (200, b"")
    assert server.send("GET", "/version")[:2] == (200, b'{"version":"0.32.0"}')


def test_metrics_have_vllms_names_types_and_labels(server: Server) -> None:
    server.answer(body())
    _, content, headers = server.send("GET", "/metrics")
    assert headers["Content-Type"].startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(content.decode())}
    kinds = {
        "gauge": ["num_requests_running", "num_requests_waiting", "num_requests_waiting_by_reason",
                  "kv_cache_usage_perc", "cache_config_info"],
        "counter": ["num_preemptions", "prompt_tokens", "generation_tokens", "prefix_cache_queries",
                    "prefix_cache_hits", "request_success", "admission_rejections"],
        "histogram": ["time_to_first_token_seconds", "inter_token_latency_seconds",
                      "request_queue_time_seconds", "e2e_request_latency_seconds"],
    }  # fmt: skip
    for kind, names in kinds.items():
        for name in names:
            family = families[f"vllm:{name}"]
            assert family.type == kind
            for one in family.samples:
                assert name == "cache_config_info" or one.labels["model_name"] == MODEL
                assert one.labels.get("engine", "0") == "0"
    (info,) = families["vllm:cache_config_info"].samples
    assert info.labels["num_gpu_blocks_override"] == "None"
    blocks = int(info.labels["num_gpu_blocks"])
    assert int(info.labels["kv_cache_size_tokens"]) == blocks * 16
    assert int(info.labels["kv_cache_memory_bytes"]) == blocks * 16 * 112 * 1024


def test_counters_and_histograms_count_what_was_served() -> None:
    with serving("--enable-prompt-tokens-details") as fresh:
        text = "word " * 100
        first = fresh.answer(body(text))["usage"]
        second = fresh.answer(body(text))["usage"]
        prompt = first["prompt_tokens"]  # type: ignore[index]
        assert first["prompt_tokens_details"] == {"cached_tokens": 0}  # type: ignore[index]
        cached = (prompt - 1) // 16 * 16
        assert second["prompt_tokens_details"] == {"cached_tokens": cached}  # type: ignore[index]
        for name, value in {
            "vllm:prompt_tokens_total": 2 * prompt,
            "vllm:generation_tokens_total": 8,
            "vllm:prefix_cache_queries_total": 2 * prompt,
            "vllm:prefix_cache_hits_total": cached,
            "vllm:time_to_first_token_seconds_count": 2,
            "vllm:inter_token_latency_seconds_count": 6,
            "vllm:e2e_request_latency_seconds_count": 2,
            "vllm:request_queue_time_seconds_count": 2,
            "vllm:kv_cache_usage_perc": 0,
        }.items():
            assert fresh.metric(name) == value, name
        assert fresh.metric("vllm:request_success_total", finished_reason="length") == 2
        assert 6 * STEP_S < fresh.metric("vllm:inter_token_latency_seconds_sum") < 6.5 * STEP_S


def test_the_next_turn_finds_the_conversation_in_the_prefix_cache() -> None:
    with serving("--enable-prompt-tokens-details") as fresh:
        messages = [{"role": "user", "content": "word " * 50}]
        first = fresh.answer(body(max_tokens=40) | {"messages": messages})
        said = first["choices"][0]["message"]  # type: ignore[index]
        history = [*messages, {"role": "assistant", "content": said["content"]}]
        following = body() | {"messages": [*history, {"role": "user", "content": "go on"}]}
        usage = fresh.answer(following)["usage"]
        # Qwen's template puts an empty thought before the first answer only while it is being written.
        kept = len(tokenize("word " * 50)) + 8
        assert usage["prompt_tokens_details"] == {"cached_tokens": kept // 16 * 16}  # type: ignore[index]


def test_tokens_come_one_a_step(server: Server) -> None:
    connection = server.connect()
    connection.request("POST", "/v1/chat/completions", json.dumps(body(max_tokens=40, stream=True)))
    response = connection.getresponse()
    stamps_s = []
    while line := response.readline():
        if b'"content":"' in line and b"role" not in line:
            stamps_s.append(time.monotonic())
    connection.close()
    assert len(stamps_s) == 40
    mean_s = (stamps_s[-1] - stamps_s[0]) / 39
    assert mean_s == pytest.approx(STEP_S, rel=0.05)


def test_clients_that_reset_in_the_middle_do_not_stop_the_engine(server: Server) -> None:
    """Resets land between the end of a connection and the end of its handler now and then."""
    address = urlsplit(server.url)
    content = json.dumps(body(stream=True, max_tokens=400)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
    for number in range(150):
        with socket.create_connection((address.hostname, address.port), timeout=10) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.sendall(head.encode() + content)
            client.recv(1000)
            time.sleep(number % 7 / 1000)
    assert server.answer(body())["choices"]


def test_a_client_that_leaves_frees_its_slot(server: Server) -> None:
    connection = server.connect()
    connection.request("POST", "/v1/chat/completions", json.dumps(body(max_tokens=20000, stream=True)))
    response = connection.getresponse()
    response.readline()
    server.wait_for("vllm:num_requests_running", 1)
    response.close()
    connection.close()
    server.wait_for("vllm:num_requests_running", 0)
    assert server.metric("vllm:kv_cache_usage_perc") == 0


def test_clients_that_leave_at_any_moment_leave_no_trace() -> None:
    with serving() as server:
        parts = urlsplit(server.url)
        for number in range(40):
            raw = json.dumps(body(f"user {number}", max_tokens=500, stream=number % 3 > 0)).encode()
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
    with serving("--max-num-queued-reqs", "1") as busy:
        connection = busy.connect()
        connection.request("POST", "/v1/chat/completions", json.dumps(body(max_tokens=9999, stream=True)))
        connection.getresponse().readline()
        status, content = busy.chat(body())
        assert status == 503
        assert json.loads(content)["error"]["type"] == "Service Unavailable"
        assert busy.metric("vllm:admission_rejections_total", reason="max_num_queued_reqs") == 1
        connection.close()


def test_a_small_pool_preempts_and_everybody_still_finishes() -> None:
    with serving("--num-gpu-blocks-override", "21", "--max-num-seqs", "8") as small:
        assert "pool 320 tokens" in small.announced
        ended: list[int] = []

        def one(number: int) -> None:
            usage = small.answer(body(f"user {number}", max_tokens=60, seed=number))["usage"]
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
    with serving(*flags, environment=environment) as guarded:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"}):
            status, content = guarded.chat(body(), **headers)
            assert (status, content) == (401, b'{"error":"Unauthorized"}')
        assert guarded.send("GET", "/v1/models")[0] == 401
        assert guarded.chat(body(), Authorization="Bearer s3cret")[0] == 200
        assert guarded.send("GET", "/metrics")[0] == 200
        assert guarded.send("GET", "/health")[0] == 200


def test_a_root_path_prefixes_everything() -> None:
    with serving("--root-path", "/gateway/a/") as prefixed:
        assert prefixed.url.endswith("/gateway/a/v1")
        assert prefixed.answer(body())["model"] == MODEL
        assert prefixed.metric("vllm:num_requests_running") == 0


def test_https_with_a_certificate(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )  # fmt: skip
    with serving("--certfile", str(certificate), "--keyfile", str(key)) as secure:
        assert secure.url.startswith("https://")
        secure.tls = ssl.create_default_context(cafile=str(certificate))
        assert len(deltas(secure.chat(body(stream=True))[1], "content")) == 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_quickly_and_quietly_while_it_streams(number: signal.Signals) -> None:
    with serving() as ending:
        connection = ending.connect()
        connection.request("POST", "/v1/chat/completions", json.dumps(body(max_tokens=9999, stream=True)))
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


def test_a_taken_port_is_exit_2(server: Server) -> None:
    refused = simulator("--port", str(urlsplit(server.url).port))
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr


def test_presets_come_from_their_data() -> None:
    t4 = find_preset("qwen3-1.7b-t4").engine_config()
    # Weights once through 75 % of 320 GB/s; 112 KiB a token through the same.
    assert t4.step_base_s == pytest.approx(2 * 1_720_574_976 / 240e9)
    assert t4.step_per_kv_token_s == pytest.approx(112 * 1024 / 240e9)
    pools = {name: preset.engine_config().pool_tokens for name, preset in PRESETS.items()}
    assert 76_000 <= pools["qwen3-1.7b-t4"] <= 89_000
    assert 43_000 <= pools["qwen1.5-1.8b-t4"] <= 51_000
    assert set(pools) == {
        *("qwen3-1.7b-t4", "qwen1.5-1.8b-t4", "qwen3-1.7b-l4", "llama-3.1-8b-a10g", "llama-3.1-8b-h100")
    }


def test_text_survives_the_tokenizer() -> None:
    for text in ("A  word, 12345 longerthannine\n\nand 中文 snake_case! ", "", "  ", "a\tb"):
        assert "".join(tokenize(text)) == text
    answer = write_answer(["x"], seed=3, max_tokens=50, forced=True, thinking=False)
    assert tokenize("".join(answer.tokens)) == answer.tokens


def test_block_hashes_stand_for_everything_before_them() -> None:
    one, other = block_hashes(list("abcdefgh"), 4), block_hashes(list("xbcdefgh"), 4)
    assert len(one) == 2
    assert not set(one) & set(other)
    assert block_hashes(list("abcdefghi"), 4) == one
