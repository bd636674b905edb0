"""What a server may answer that is no Prometheus' answer, over real sockets; credentials go nowhere else."""

import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from analysis.production.prometheus_api import TOKEN_VARIABLE, read_prometheus
from loadtest.errors import InputError

SECRET = "t0ken-of-prometheus"


class Serving(ThreadingHTTPServer):
    """Answers every request alike, and keeps their Authorization headers."""

    def __init__(self, status: int, body: bytes, location: str | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status, self.body, self.location = status, body, location
        self.authorizations: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Serving

    def do_GET(self) -> None:
        self.server.authorizations.append(self.headers["Authorization"])
        self.send_response(self.server.status)
        if self.server.location is not None:
            self.send_header("Location", self.server.location)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_: object) -> None:
        return


@contextmanager
def serving(status: int, body: bytes = b"", location: str | None = None) -> Iterator[Serving]:
    with Serving(status, body, location) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def read(address: str) -> str:
    """Returns the sentence of the InputError that reading this address raises."""
    with pytest.raises(InputError) as raised:
        read_prometheus(address, range_s=60, model=None, selector="")
    assert SECRET not in "".join(traceback.format_exception(raised.value))
    return str(raised.value)


def test_a_token_goes_to_the_server_that_was_named_and_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, SECRET)
    with serving(200, b"{}") as other, serving(302, location=f"{other.url}/elsewhere") as first:
        assert f"redirects to {other.url}/elsewhere" in read(first.url)
        assert first.authorizations == [f"Bearer {SECRET}"]
        assert other.authorizations == []


def test_a_password_is_sent_and_not_repeated_by_an_error_that_holds_it() -> None:
    body = b'{"status": "error", "errorType": "bad_data", "error": "no %b here"}' % SECRET.encode()
    with serving(422, body) as server:
        said = read(server.url.replace("://", f"://bob:{SECRET}@"))
        assert said.startswith(f"Prometheus at {server.url} answered 422: no ")
        assert (server.authorizations[0] or "").startswith("Basic ")


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, b"", TOKEN_VARIABLE),
        (404, b"<html>", "answered 404"),
        (200, b"<html>", "does not answer as Prometheus does"),
        (200, b'{"status": "success", "data": []}', "has no series"),
    ],
)
def test_an_answer_that_holds_no_metrics_is_one_sentence(status: int, body: bytes, words: str) -> None:
    with serving(status, body) as server:
        assert words in read(server.url)


def test_no_server_and_no_address_are_named() -> None:
    with serving(200) as gone:
        pass
    assert "cannot be reached" in read(gone.url)
    assert "is not an address" in read("prometheus:9090")
