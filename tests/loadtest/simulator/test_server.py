"""The embedded server over real sockets: vLLM 0.32's wire format, and the engine in real time."""

import json
import re
import socket
import time
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from loadtest.server.vllm import read_server_samples
from loadtest.simulator.presets import PRESETS
from loadtest.simulator.text import render_prompt, tokenize, write_answer
from testing.servers.simulated import (
    SIMULATED_MODEL,
    SimulatedServer,
    chat_body,
    simulated_server,
    sse_events,
    stream_chunks,
    stream_deltas,
)

STEP_S = PRESETS["qwen3-1.7b-t4"].engine_config().step_base_s


def test_it_announces_preset_pool_and_url(server: SimulatedServer) -> None:
    pattern = r"Serving Qwen3-1\.7B \(simulated, preset qwen3-1\.7b-t4, pool 8\d{4} tokens\) on (\S+)\n"
    match = re.fullmatch(pattern, server.announced)
    assert match
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/v1", match[1])


def test_a_stream_has_vllms_bytes(server: SimulatedServer) -> None:
    status, content = server.chat(
        chat_body(stream=True, stream_options={"include_usage": True}), **{"X-Request-Id": "abc"}
    )
    assert status == 200
    created = stream_chunks(content)[0]["created"]
    head = (
        f'{{"id":"chatcmpl-abc","object":"chat.completion.chunk","created":{created},'
        f'"model":"{SIMULATED_MODEL}",'
    )
    role, *contents, last, usage, done = sse_events(content)
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


def test_without_usage_the_last_chunk_is_signed(server: SimulatedServer) -> None:
    _, content = server.chat(chat_body(stream=True))
    *_, last = stream_chunks(content)
    assert last["system_fingerprint"] == "vllm-0.32.0-seatcount"
    assert list(last) == ["id", "object", "created", "model", "choices", "system_fingerprint"]


def test_running_usage_counts_from_zero_to_all(server: SimulatedServer) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    _, content = server.chat(chat_body(stream=True, stream_options=options))
    usages = [chunk["usage"] for chunk in stream_chunks(content)]
    counts = [usage["completion_tokens"] for usage in usages]  # type: ignore[index]
    assert counts == [0, 1, 2, 3, 4, 4]
    assert list(usages[0]) == [  # type: ignore[call-overload]
        "prompt_tokens",
        "total_tokens",
        "completion_tokens",
        "completion_tokens_details",
    ]


def test_a_whole_answer_says_what_its_stream_says(server: SimulatedServer) -> None:
    whole = server.answer(chat_body())
    _, content = server.chat(chat_body(stream=True))
    choice = whole["choices"][0]  # type: ignore[index]
    assert choice["message"]["content"] == "".join(stream_deltas(content, "content"))
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
def test_thinking_streams_reasoning_before_the_answer(
    server: SimulatedServer, asked: dict[str, object]
) -> None:
    wanted = chat_body(max_tokens=10, stream=True, stream_options={"include_usage": True}, **asked)
    _, content = server.chat(wanted)
    reasoning, answer = stream_deltas(content, "reasoning"), stream_deltas(content, "content")
    # The marks around the thought are two tokens without a chunk.
    assert (len(reasoning), len(answer)) == (5, 3)
    usage = stream_chunks(content)[-1]["usage"]
    assert usage["completion_tokens"] == 10  # type: ignore[index]
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 5}  # type: ignore[index]
    message = server.answer(wanted | {"stream": False})["choices"][0]["message"]  # type: ignore[index]
    assert (message["reasoning"], message["content"]) == ("".join(reasoning), "".join(answer))


def test_a_short_thought_is_cut_before_the_answer(server: SimulatedServer) -> None:
    _, content = server.chat(chat_body(max_tokens=3, stream=True, enable_thinking=True))
    assert len(stream_deltas(content, "reasoning")) == 2
    assert stream_deltas(content, "content") == []


def test_without_ignore_eos_the_answer_ends_by_itself(server: SimulatedServer) -> None:
    asked = chat_body(ignore_eos=False, max_tokens=2000, stream=True)
    text = next(
        text for text in (f"question {number}" for number in range(99)) if len(natural_answer(text)) < 100
    )
    asked["messages"] = [{"role": "user", "content": text}]
    _, content = server.chat(asked)
    last = stream_chunks(content)[-1]["choices"][0]  # type: ignore[index]
    assert last["finish_reason"] == "stop"
    assert last["delta"] == {"content": ""}
    assert stream_deltas(content, "content") == natural_answer(text)
    cut = server.answer(asked | {"stream": False, "max_tokens": 7})
    assert cut["choices"][0]["finish_reason"] == "length"  # type: ignore[index]
    assert cut["choices"][0]["message"]["content"] == "".join(natural_answer(text)[:7])  # type: ignore[index]


def natural_answer(text: str) -> list[str]:
    prompt = render_prompt([("user", text)], thinks=True, thinking=False)
    return write_answer(prompt, seed=0, max_tokens=2000, forced=False, thinking=False).tokens


def test_answers_follow_from_prompt_and_seed(server: SimulatedServer) -> None:
    def text(**fields: object) -> str:
        return str(server.answer(chat_body(max_tokens=8, **fields))["choices"][0]["message"]["content"])  # type: ignore[index]

    assert text() == text(temperature=1.0, top_p=0.5)
    assert text() != text(seed=1)
    assert text() != text(text="Another question?")


def test_max_completion_tokens_wins(server: SimulatedServer) -> None:
    usage = server.answer(chat_body(max_completion_tokens=2))["usage"]
    assert usage["completion_tokens"] == 2  # type: ignore[index]


def test_content_parts_count_like_text(server: SimulatedServer) -> None:
    parts = [{"type": "text", "text": "What is the capital of France?"}]
    whole = server.answer(chat_body() | {"messages": [{"role": "user", "content": parts}]})
    assert whole["usage"] == server.answer(chat_body())["usage"]


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
    server: SimulatedServer, changes: dict[str, object], status: int, kind: str, param: str, message: str
) -> None:
    got, content = server.chat(chat_body() | changes)
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
def test_malformed_requests_are_bad_requests(server: SimulatedServer, raw: bytes) -> None:
    status, content, _ = server.send("POST", "/v1/chat/completions", raw)
    assert status == 400
    assert json.loads(content)["error"]["type"] == "Bad Request"


def test_a_prompt_near_the_context_is_clipped_to_it() -> None:
    with simulated_server("--max-model-len", "64") as small:
        usage = small.answer(chat_body("word " * 40, max_tokens=64))["usage"]
        assert usage["total_tokens"] == 64  # type: ignore[index]


def test_unknown_paths_and_methods_are_refused_as_vllm_does(server: SimulatedServer) -> None:
    assert server.send("GET", "/nowhere")[:2] == (404, b'{"detail":"Not Found"}')
    assert server.send("GET", "/v1/chat/completions")[:2] == (405, b'{"detail":"Method Not Allowed"}')


def test_models_say_that_it_is_simulated(server: SimulatedServer) -> None:
    (card,) = json.loads(server.send("GET", "/v1/models")[1])["data"]
    assert (card["id"], card["owned_by"], card["max_model_len"]) == (
        SIMULATED_MODEL,
        "seatcount-simulator",
        32768,
    )
    assert server.metric("seatcount_simulator_info", preset="qwen3-1.7b-t4") == 1
    assert server.send("GET", "/health")[:2] == (200, b"")
    assert server.send("GET", "/version")[:2] == (200, b'{"version":"0.32.0"}')


def test_metrics_have_vllms_names_types_and_labels(server: SimulatedServer) -> None:
    server.answer(chat_body())
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
                assert name == "cache_config_info" or one.labels["model_name"] == SIMULATED_MODEL
                assert one.labels.get("engine", "0") == "0"
    (info,) = families["vllm:cache_config_info"].samples
    assert info.labels["num_gpu_blocks_override"] == "None"
    blocks = int(info.labels["num_gpu_blocks"])
    assert int(info.labels["kv_cache_size_tokens"]) == blocks * 16
    assert int(info.labels["kv_cache_memory_bytes"]) == blocks * 16 * 112 * 1024


def test_counters_and_histograms_count_what_was_served() -> None:
    with simulated_server("--enable-prompt-tokens-details") as fresh:
        text = "word " * 100
        first = fresh.answer(chat_body(text))["usage"]
        second = fresh.answer(chat_body(text))["usage"]
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
    with simulated_server("--enable-prompt-tokens-details") as fresh:
        messages = [{"role": "user", "content": "word " * 50}]
        first = fresh.answer(chat_body(max_tokens=40) | {"messages": messages})
        said = first["choices"][0]["message"]  # type: ignore[index]
        history = [*messages, {"role": "assistant", "content": said["content"]}]
        following = chat_body() | {"messages": [*history, {"role": "user", "content": "go on"}]}
        usage = fresh.answer(following)["usage"]
        # Qwen's template puts an empty thought before the first answer only while it is being written.
        kept = len(tokenize("word " * 50)) + 8
        assert usage["prompt_tokens_details"] == {"cached_tokens": kept // 16 * 16}  # type: ignore[index]


def test_tokens_come_one_a_step(server: SimulatedServer) -> None:
    connection = server.connect()
    connection.request("POST", "/v1/chat/completions", json.dumps(chat_body(max_tokens=40, stream=True)))
    response = connection.getresponse()
    stamps_s = []
    while line := response.readline():
        if b'"content":"' in line and b"role" not in line:
            stamps_s.append(time.monotonic())
    connection.close()
    assert len(stamps_s) == 40
    mean_s = (stamps_s[-1] - stamps_s[0]) / 39
    assert mean_s == pytest.approx(STEP_S, rel=0.05)


def test_its_histograms_and_its_start_are_read_as_vllms(server: SimulatedServer) -> None:
    before = time.time()
    server.answer(chat_body(max_tokens=5))
    _, content, _ = server.send("GET", "/metrics")
    (row,) = read_server_samples(content.decode(), model=SIMULATED_MODEL, unix_s=before)
    assert row.ttft_count
    assert row.ttft_count == row.e2e_count == row.tpot_count == row.queue_count
    assert row.ttft_sum_s is not None
    assert row.e2e_sum_s is not None
    assert 0 < row.ttft_sum_s < row.e2e_sum_s
    assert row.started_unix_s is not None
    assert before - 600 < row.started_unix_s < before


@pytest.mark.parametrize("connection", ["close", "keep-alive"])
def test_a_client_of_http_1_0_gets_the_same_stream_without_chunks(
    server: SimulatedServer, connection: str
) -> None:
    body = json.dumps(chat_body(stream=True)).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.0\r\nConnection: {connection}\r\nContent-Length: {len(body)}\r\n"
    )
    with socket.create_connection(("127.0.0.1", urlsplit(server.url).port or 0), timeout=10) as client:
        client.sendall(head.encode() + b"\r\n" + body)
        received = b"".join(iter(lambda: client.recv(65536), b""))
    status, _, stream = received.partition(b"\r\n\r\n")
    assert status.startswith(b"HTTP/1.0 200 OK")
    assert b"chunked" not in status.lower()
    _, whole = server.chat(chat_body(stream=True))
    assert stream_deltas(stream, "content") == stream_deltas(whole, "content")
