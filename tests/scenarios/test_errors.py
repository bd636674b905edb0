"""Users whose requests fail, as a user of the load test sees them: real processes, real sockets."""

import http.server
import itertools
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from testing.load_tests import RunLocust, two_processes
from testing.processes import gateway, simulator
from testing.servers.wire import DONE_EVENT, sse_event


class _Overloaded(http.server.BaseHTTPRequestHandler):
    """Answers test requests, and every other request with 503 at once."""

    protocol_version = "HTTP/1.1"
    server: "_Server"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        found = self.path == "/v1/models"
        self._answer(200 if found else 404, b'{"data": [{"id": "m"}]}' if found else b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("X-Request-Id", "seatcount-preflight") == "seatcount-preflight":
            usage = {"prompt_tokens": len(body.split()), "completion_tokens": 1}
            events = [sse_event({"content": "a"}, finish="length"), sse_event(usage=usage), DONE_EVENT]
            self._answer(200, b"".join(events), {"Content-Type": "text/event-stream"})
            return
        server = self.server
        with server.lock:
            server.times.append(time.monotonic())
            server.in_flight += 1
            server.most = max(server.most, server.in_flight)
            server.in_flight -= 1
        retry = {"Retry-After": server.retry_after} if server.retry_after else {}
        self._answer(503, b'{"error": {"message": "all seats are taken"}}', retry)

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    retry_after: str | None = None

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Overloaded)
        self.lock = threading.Lock()
        self.times: list[float] = []
        self.in_flight = 0
        self.most = 0


@contextmanager
def overloaded_server(retry_after: str | None = None) -> Iterator[tuple[_Server, str]]:
    with _Server() as server:
        server.retry_after = retry_after
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server, f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_while_all_requests_fail_users_send_at_most_one_request_a_second_each(run_locust: RunLocust) -> None:
    users = 6
    with overloaded_server() as (server, url):
        run = run_locust(url, levels=str(users), level_s="9", settle_s="1", prompt_tokens="20")
    rows = run.rows()
    assert len(server.times) == len(rows) >= 3 * users
    for begin in server.times:
        assert sum(begin <= at < begin + 0.99 for at in server.times) <= users
    assert server.most <= users
    assert {(row["outcome"], row["http_status"], row["error"]) for row in rows} == {
        ("http_error", 503, "all seats are taken")
    }
    for user in {row["user"] for row in rows}:
        own = sorted((row for row in rows if row["user"] == user), key=lambda row: row["start_unix_s"])
        assert [row["pause_s"] for row in own][:3] == [1, 2, 4][: len(own)]
        for before, after in itertools.pairwise(own):
            waited = after["start_unix_s"] - before["start_unix_s"] - before["end_s"]
            assert before["pause_s"] - 0.01 < waited < before["pause_s"] + 1


def test_the_end_of_a_level_ends_the_pauses(run_locust: RunLocust) -> None:
    began = time.monotonic()
    with overloaded_server(retry_after="25") as (_, url):
        run = run_locust(url, levels="3", level_s="3", settle_s="0.5", prompt_tokens="20")
    assert time.monotonic() - began < 25
    assert {row["pause_s"] for row in run.rows()} == {25}
    assert len(run.rows()) == 3


def test_an_open_loop_does_not_pause(run_locust: RunLocust) -> None:
    with overloaded_server() as (_, url):
        run = run_locust(url, arrivals="constant:20", level_s="2", prompt_tokens="20")
    rows = run.rows()
    assert 38 <= len(rows) <= 40
    assert {row["pause_s"] for row in rows} == {None}


def test_a_failed_turn_ends_its_conversation(run_locust: RunLocust, simulated: str) -> None:
    with gateway(simulated, error_share=0.3, seed=92) as url:  # a seed that lets the test requests pass
        run = run_locust(url, levels="3", turns="4", level_s="5", error_pause_s="0.05")
    rows = run.rows()
    failed = 0
    for user in {row["user"] for row in rows}:
        own = sorted((row for row in rows if row["user"] == user), key=lambda row: row["start_unix_s"])
        for before, after in itertools.pairwise(own):
            failed += before["outcome"] != "ok"
            after_success = (before["turn"] + 1) % 4
            assert after["turn"] == (after_success if before["outcome"] == "ok" else 0)
    assert failed > 5


def test_a_server_without_usage_does_not_make_conversations_overflow(run_locust: RunLocust) -> None:
    with simulator("--max-model-len", "300") as server, gateway(server, no_usage=True) as url:
        run = run_locust(url, levels="2", turns="30", level_s="4", output_tokens="16")
    rows = run.rows()
    assert {row["outcome"] for row in rows} == {"ok"}
    assert {row["prompt_tokens"] for row in rows} == {row["output_tokens"] for row in rows} == {None}
    assert 2 <= max(row["turn"] for row in rows) < 6
    assert any("histories are sized by a guess" in warning for warning in run.info["warnings"])


def test_a_server_that_closes_after_each_answer_costs_no_request(
    run_locust: RunLocust, simulated: str
) -> None:
    with gateway(simulated, close_after=True) as url:
        run = run_locust(url, levels="6", level_s="4")
    assert run.code == 0, run.said
    rows = run.rows()
    assert len(rows) > 50
    assert [row["error"] for row in rows if row["outcome"] != "ok"] == []


def test_own_prompts_do_not_come_again_before_all_were_sent(
    run_locust: RunLocust, simulated: str, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.jsonl"
    texts = [" ".join(["word"] * (30 + i)) for i in range(40)]
    file.write_text("".join(json.dumps({"messages": [{"role": "user", "content": t}]}) + "\n" for t in texts))
    run = run_locust(simulated, *two_processes(), levels="1,4", prompts=str(file), level_s="3")
    assert run.code == 0, run.said
    rows = sorted(run.rows(), key=lambda row: row["start_unix_s"])
    assert {row["worker"] for row in rows} == {"0", "1"}
    assert len(rows) > 60
    lengths = [row["prompt_tokens"] for row in rows]
    assert len(set(lengths)) == 40
    # A worker holds a few numbers in advance, so the last of a round come with the first of the next.
    assert len(set(lengths[:30])) == 30
    own = run.info["own_prompts"]
    assert (own["count"], own["used"]) == (40, len(rows))
    assert any(f"{len(rows)} requests sent each" in warning for warning in run.info["warnings"])
    assert 0.5 < own["hit_fraction"] <= 1


def test_a_second_run_does_not_find_the_prompts_of_the_first_in_the_cache(
    run_locust: RunLocust, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.jsonl"
    texts = [f"{i} " + " ".join(["word"] * 100) for i in range(400)]
    file.write_text("".join(json.dumps({"messages": [{"role": "user", "content": t}]}) + "\n" for t in texts))
    with simulator("--num-gpu-blocks-override", "9000") as url:
        for name in ("a", "b"):
            run = run_locust(
                url, levels="2", prompts=str(file), level_s="3", reports_dir=str(tmp_path / name)
            )
            run.reports = tmp_path / name
            assert run.code == 0, run.said
            assert run.info["own_prompts"]["kept_apart"]
            assert "kept apart from earlier runs" in run.said
            assert 20 < run.info["own_prompts"]["used"] <= 400
            samples = run.rows("server.jsonl")
            hits = [sample["prefix_cache_hits_total"] for sample in samples]
            assert hits[-1] == hits[0]
