"""The misbehaving gateway in front of the embedded server, rule by rule."""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from testing.processes import change_gateway, gateway, simulator, until
from testing.servers.simulated import chat_body, sse_events

Answer = tuple[int, bytes, dict[str, str]]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with simulator("--enable-prompt-tokens-details") as url:
        yield url


def ask(url: str, **fields: object) -> Answer:
    body = chat_body(stream=True, stream_options={"include_usage": True}, **fields)
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read(), dict(error.headers)


def page(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return bytes(answer.read())


def chunks(content: bytes) -> list[dict[str, object]]:
    return [json.loads(event) for event in sse_events(content)[:-1]]


def text(content: bytes) -> str:
    choices = [choice for chunk in chunks(content) for choice in chunk["choices"]]  # type: ignore[attr-defined]
    return "".join(choice["delta"].get("content", "") for choice in choices)


def test_without_rules_it_streams_the_answer_through(server: str) -> None:
    with gateway(server) as url:
        began = time.monotonic()
        with urllib.request.urlopen(
            urllib.request.Request(
                f"{url}/v1/chat/completions",
                json.dumps(chat_body(stream=True, max_tokens=100)).encode(),
            ),
            timeout=10,
        ) as answer:
            answer.readline()
            first_s = time.monotonic() - began
            content = answer.read()
        assert first_s < 0.3 * (time.monotonic() - began)
        assert content.endswith(b"data: [DONE]\n\n")
        assert b"vllm:num_requests_running" in page(f"{url}/metrics")


def test_it_sheds_from_the_second_unfinished_chat_on(server: str) -> None:
    with gateway(server, shed_from=2, retry_after=3) as url, ThreadPoolExecutor() as pool:
        slow = pool.submit(ask, url, max_tokens=60)
        time.sleep(0.3)
        status, content, headers = ask(url)
        assert (status, headers["Retry-After"]) == (503, "3")
        assert json.loads(content)["error"]["message"] == "The gateway refuses this request."
        assert slow.result()[0] == 200
        assert ask(url)[0] == 200


def test_shares_are_drawn(server: str) -> None:
    with gateway(server, refuse_share=0.3, error_share=0.2) as url:
        statuses = [ask(url, max_tokens=1)[0] for _ in range(60)]
    assert {200, 400, 500} == set(statuses)
    assert 8 < statuses.count(400) < 30


def test_answers_can_lose_their_text_and_keep_their_tokens(server: str) -> None:
    with gateway(server, empty_share=1, abort_share=1) as url:
        status, content, _ = ask(url)
    assert status == 200
    assert text(content) == ""
    assert chunks(content)[-1]["usage"]["completion_tokens"] == 4  # type: ignore[index]
    assert b'"finish_reason": "abort"' in content


def test_usage_can_be_left_out(server: str) -> None:
    with gateway(server, no_usage=True) as url:
        content = ask(url)[1]
    assert text(content)
    assert b"usage" not in content


def test_rates_are_limited(server: str) -> None:
    with gateway(server, requests_a_minute=60) as url:
        assert [ask(url, max_tokens=1)[0] for _ in range(2)] == [200, 429]
        time.sleep(1)
        assert ask(url, max_tokens=1)[0] == 200
    with gateway(server, tokens_a_minute=600) as url:
        statuses = [ask(url, max_tokens=4)[0] for _ in range(2)]
        assert statuses == [200, 429]


def test_prompts_fields_and_statuses_are_refused(server: str) -> None:
    with gateway(server, max_prompt_words=3, refuse_ignore_eos=True) as url:
        assert ask(url)[0] == 422
        change_gateway(url, refuse_ignore_eos=False)
        status, content, _ = ask(url)
        assert status == 400
        assert b"maximum context length is 3 tokens" in content
        change_gateway(url, max_prompt_words=None)
        assert ask(url)[0] == 200
        change_gateway(url, status=401, words="The key has expired.")
        assert ask(url)[:1] == (401,)
        change_gateway(url, status=None, login=True)
        status, content, headers = ask(url)
        assert status == 200
        assert headers["Content-Type"].startswith("text/html")


@pytest.mark.parametrize(
    "rules", [{"cut_after_s": 0.2}, {"idle_s": 0.01}, {"malformed_share": 1}, {"reset_share": 1}]
)
def test_streams_break(server: str, rules: dict[str, object]) -> None:
    with (
        gateway(server, **rules) as url,
        pytest.raises((http.client.HTTPException, OSError, ValueError)),
    ):
        ask(url, max_tokens=60)


def test_it_is_away_and_comes_back(server: str) -> None:
    with gateway(server, away_s=1, away_in_s=0.2) as url:
        assert ask(url)[0] == 200
        time.sleep(0.4)
        with pytest.raises(OSError, match="refused"):
            ask(url)
        until(5, lambda: ask(url)[0] == 200)
        change_gateway(url, away_s=0.5, away_in_s=0)
        time.sleep(0.2)
        with pytest.raises(OSError, match="refused"):
            ask(url)
        until(5, lambda: ask(url)[0] == 200)


def test_chunks_are_gathered(server: str) -> None:
    with gateway(server, gather_bytes=100_000) as url:
        began = time.monotonic()
        request = urllib.request.Request(
            f"{url}/v1/chat/completions", json.dumps(chat_body(stream=True, max_tokens=60)).encode()
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            answer.readline()
            first_s = time.monotonic() - began
            answer.read()
        assert first_s > 0.9 * (time.monotonic() - began)


def test_it_closes_after_an_answer_although_it_promised_to_keep_the_connection(server: str) -> None:
    with gateway(server, close_after=True) as url:
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
        for _ in range(2):
            connection.request("POST", "/v1/chat/completions", json.dumps(chat_body(stream=True)))
            answer = connection.getresponse()
            assert answer.headers["Keep-Alive"] == "timeout=5"
            assert b"[DONE]" in answer.read()
            assert connection.sock is not None
            time.sleep(0.1)
            assert connection.sock.recv(1) == b""
            connection.close()


def test_the_body_stays_open_after_done(server: str) -> None:
    with gateway(server, hang_s=0.5) as url:
        began = time.monotonic()
        ask(url, max_tokens=1)
        assert time.monotonic() - began > 0.5


def test_chats_queue_for_the_slow_gateway(server: str) -> None:
    with gateway(server, delay_s=0.3, delay_slots=1) as url, ThreadPoolExecutor() as pool:
        began = time.monotonic()
        answers = list(pool.map(lambda _: ask(url, max_tokens=1)[0], range(3)))
        assert answers == [200] * 3
        assert time.monotonic() - began > 0.9


def test_a_chat_is_sent_again_when_the_server_fails(server: str) -> None:
    with gateway(server, status=503) as broken, gateway(broken, server, retries=1) as url:
        assert [ask(url)[0] for _ in range(3)] == [200] * 3


def test_two_servers_take_turns_and_a_dead_one_is_a_bad_gateway(server: str) -> None:
    with gateway(server, "http://127.0.0.1:1") as url:
        assert [ask(url)[0] for _ in range(4)] == [200, 502, 200, 502]


def test_pages_change(server: str) -> None:
    with gateway(server, model_name="unknown", metrics_head="odd 1\n") as url:
        (card,) = json.loads(page(f"{url}/v1/models"))["data"]
        assert card["id"] == "unknown"
        assert page(f"{url}/metrics").startswith(b"odd 1\n")
        assert ask(url, model="unknown")[0] == 200
        change_gateway(url, no_metrics=True)
        with pytest.raises(urllib.error.HTTPError):
            page(f"{url}/metrics")
