"""Reads what an OpenAI-compatible server states about its models and its version. Knows no chat requests."""

import asyncio
import contextlib
import ipaddress
import logging
import os
import re
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from loadtest.client.target import Target
from loadtest.credentials import shown_address
from loadtest.errors import InputError

logger = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 30.0
"""Time limit, in seconds, of requests that a server answers without computing."""
LOADING_LIMIT_S = 600.0
"""Longest time, in seconds, that a server may take to load its model."""
LOADING_POLL_S = 2.0
REMINDER_S = 20.0
"""Seconds between two messages that say what is still waited for."""
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""What a client of HTTP/2 sends first: the preface, and SETTINGS without a setting (RFC 9113, 3.4)."""
_NO_SUCH_PAGE = frozenset({404, 405, 501})
_LOADING = re.compile(
    r"\bload(?:ing|ed)\b|\bstarting\b|warm(?:ing)?[ -]?up|\bnot ready\b|initiali[sz]ing", re.I
)


class StatusError(Exception):
    """The server answered with a status other than 200."""

    def __init__(self, status: int, location: str | None, words: str) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status
        self.location = location
        self.words = words
        """The beginning of the answer's body."""


def is_loading(status: int | None, words: str) -> bool:
    """Whether an answer says that the server is still loading its model."""
    return status == 503 and _LOADING.search(words) is not None


async def get_json(session: aiohttp.ClientSession, url: str) -> Any:
    """Returns the JSON document at an address. Raises StatusError for a status other than 200, ValueError
    for another document, and aiohttp.ClientError, OSError or TimeoutError if there is no answer."""
    timeout = aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S)
    async with session.get(url, timeout=timeout, allow_redirects=False) as response:
        if response.status != 200:
            words = (await response.content.read(2000)).decode("utf-8", "replace")
            raise StatusError(response.status, response.headers.get("Location"), words)
        return await response.json(content_type=None, encoding="utf-8")


async def list_models(
    session: aiohttp.ClientSession, target: Target, *, needed: bool, limit_s: float = LOADING_LIMIT_S
) -> list[dict[str, Any]]:
    """Returns the entries of /v1/models. Waits up to `limit_s` seconds while the server says that it is
    loading its model. If the server has no such list, raises InputError with the reason if the list is
    `needed`, and returns no entries otherwise."""
    url = f"{target.api_url}/models"
    try:
        listed = await _get_when_loaded(session, url, limit_s=limit_s)
        return [dict(entry) for entry in listed["data"] if isinstance(entry["id"], str)]
    except StatusError as refusal:
        if not needed and refusal.status in _NO_SUCH_PAGE:
            return []
        raise InputError(_refusal_sentence(url, refusal, target)) from None
    except TimeoutError:
        raise InputError(f"{url} did not answer within {ANSWER_TIMEOUT_S:g} s.") from None
    except aiohttp.ClientConnectorSSLError as error:
        raise InputError(
            f"{target.shown}: no TLS connection ({connection_problem(error)}): if the server speaks plain "
            "HTTP, give --host http://..."
        ) from None
    except aiohttp.ClientConnectorCertificateError as error:
        raise InputError(
            f"{target.shown} has no certificate that is trusted here ({connection_problem(error)}): "
            "name its certificate authority with --ca-file."
        ) from None
    except aiohttp.ClientConnectorError as error:
        raise InputError(f"{target.shown} cannot be reached ({connection_problem(error)}).") from None
    except (aiohttp.ClientError, OSError) as error:
        if isinstance(error, aiohttp.ClientResponseError) and await _speaks_http2(target):
            raise InputError(
                f"{target.shown} speaks HTTP/2 only here, and the load test sends HTTP/1.1: let the gateway "
                "accept HTTP/1.1 as well, or name the server behind it with --host."
            ) from None
        raise InputError(f"{target.shown} does not speak HTTP ({type(error).__name__}).") from None
    except (ValueError, LookupError, TypeError):
        if not needed:
            return []
        raise InputError(f"{url} is not the model list of an OpenAI-compatible server.") from None


async def _speaks_http2(target: Target) -> bool:
    """Whether a server's first frame is one of HTTP/2: SETTINGS on stream 0 (RFC 9113, 3.4 and 6.5)."""
    parts = urlsplit(target.api_url)
    tls = (target.tls() or True) if parts.scheme == "https" else None
    frame = b""
    with contextlib.suppress(OSError, EOFError, TimeoutError):
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(
                parts.hostname, parts.port or (443 if tls else 80), ssl=tls
            )
            try:
                writer.write(HTTP2_PREFACE)
                frame = await reader.readexactly(9)
            finally:
                writer.close()
    return frame[3:4] == b"\4" and frame[5:9] == bytes(4)


async def _get_when_loaded(session: aiohttp.ClientSession, url: str, *, limit_s: float) -> Any:
    wait = LoadingWait(limit_s=limit_s)
    while True:
        try:
            return await get_json(session, url)
        except StatusError as refusal:
            if not is_loading(refusal.status, refusal.words):
                raise
            await wait.once_more()


class LoadingWait:
    """Waits for a server that is loading its model, says so now and then, and gives up at a limit."""

    def __init__(self, *, limit_s: float = LOADING_LIMIT_S) -> None:
        self._limit_s = limit_s
        self._began = asyncio.get_running_loop().time()
        self._next_message = self._began

    async def once_more(self) -> None:
        """Waits a moment before the server is asked again. Raises InputError when the limit has passed."""
        now = asyncio.get_running_loop().time()
        waited = now - self._began
        if waited >= self._limit_s:
            raise InputError(
                f"The server was still loading its model after {waited:.0f} s: start the test when it "
                "is ready."
            )
        if now >= self._next_message:
            logger.info(
                "The server is loading its model: waiting (%.0f s so far, at most %.0f s) ...",
                waited,
                self._limit_s,
            )
            self._next_message = now + REMINDER_S
        await asyncio.sleep(min(LOADING_POLL_S, self._limit_s))


def connection_problem(error: aiohttp.ClientConnectorError) -> str:
    """Returns in a few words why there was no connection, such as "Connection refused"."""
    cause = error.os_error
    if cause.errno is not None and cause.errno > 0:  # asyncio puts the address into `strerror`
        return os.strerror(cause.errno)
    return cause.strerror or str(cause) or type(cause).__name__


def key_advice(target: Target) -> str:
    """Returns what to do after the server has answered 401 or 403, as the end of a sentence. A key in
    OPENAI_API_KEY is offered, and not sent unasked: it may be meant for another server."""
    if target.has_key:
        return "it does not accept the key that was given as LOADTEST_API_KEY or in --host"
    advice = "set the server's key as LOADTEST_API_KEY"
    if os.environ.get("OPENAI_API_KEY"):
        advice += '; OPENAI_API_KEY is set and is not sent unasked (LOADTEST_API_KEY="$OPENAI_API_KEY" does)'
    return advice


def _refusal_sentence(url: str, refusal: StatusError, target: Target) -> str:
    if refusal.status in (401, 403):
        return f"{url} answered {refusal.status}: {key_advice(target)}."
    if refusal.location:
        return f"{url} redirects to {shown_address(refusal.location)}: give that server as --host."
    if refusal.status == 404:
        return f"{url} does not exist: --host is not an OpenAI-compatible server, or has another path prefix."
    return f"{url} answered {refusal.status}: the server is not ready, or not an OpenAI-compatible one."


async def server_version(session: aiohttp.ClientSession, target: Target) -> str | None:
    """Returns the version that the server states at /version; None if it states none."""
    answer = await _optional_json(session, target.api_url.removesuffix("/v1") + "/version")
    return str(answer["version"]) if isinstance(answer, dict) and "version" in answer else None


async def _optional_json(session: aiohttp.ClientSession, url: str) -> Any:
    try:
        return await get_json(session, url)
    except (StatusError, aiohttp.ClientError, OSError, TimeoutError, ValueError):
        return None


def choose_model(listed: list[dict[str, Any]], wanted: str | None) -> tuple[str, dict[str, Any], list[str]]:
    """Returns three values: the name of the model to test, its entry in /v1/models (empty if it is not
    listed), and warnings. The model is `wanted`, which is taken as said, or the only listed model if `wanted`
    is None. Raises InputError, with the names to choose from, if there is neither."""
    names = [entry["id"] for entry in listed]
    listing = ", ".join(names)
    if wanted is None and not names:
        raise InputError("The server lists no model: name the one to test with --model.")
    if wanted is None and len(names) > 1:
        raise InputError(f"The server lists {len(names)} models; choose one with --model: {listing}.")
    if wanted is None:
        wanted = names[0]
    if wanted in names:
        return wanted, listed[names.index(wanted)], []
    return wanted, {}, [f"The server does not list the model '{wanted}' (it lists {listing or 'none'})."]


_CONTEXT_NAMES = (
    "max_model_len",
    "context_length",
    "context_window",
    "max_context_length",
    "max_input_tokens",
)


async def listed_context(
    session: aiohttp.ClientSession,
    target: Target,
    *,
    model: str,
    entry: dict[str, Any],
    listed: list[dict[str, Any]],
) -> int | None:
    """Returns the context length of a model in tokens, as the server states it; None if it does not.

    It is looked for in the model's entry in /v1/models, in that of its base model (an adapter's `parent`), in
    llama.cpp's `meta` and /props, and in LiteLLM's /model/info.
    """
    parent = entry.get("parent")
    base = next((other for other in listed if parent is not None and other["id"] == parent), {})
    stated = _positive(entry, *_CONTEXT_NAMES) or _positive(base, *_CONTEXT_NAMES)
    if stated is not None:
        return stated
    meta = entry.get("meta")
    if isinstance(meta, dict):  # llama.cpp: the context of a request may be smaller than what was trained
        props = await _optional_json(session, target.api_url.removesuffix("/v1") + "/props")
        slot = props.get("default_generation_settings") if isinstance(props, dict) else None
        return _positive(meta, "n_ctx") or _positive(slot, "n_ctx") or _positive(meta, "n_ctx_train")
    info = await _optional_json(session, f"{target.api_url}/model/info")
    deployments = info.get("data") if isinstance(info, dict) else None
    for deployment in deployments if isinstance(deployments, list) else []:
        if isinstance(deployment, dict) and deployment.get("model_name") == model:
            return _positive(deployment.get("model_info"), *_CONTEXT_NAMES)
    return None


def _positive(values: object, *names: str) -> int | None:
    """Returns the first of the named values that is a positive whole number; None if none is."""
    found = (values.get(name) for name in names) if isinstance(values, dict) else ()
    return next((value for value in found if isinstance(value, int) and value > 0), None)


async def is_local(url: str) -> bool:
    """Whether `url` points to this machine (a loopback address). A tunnel looks like that too."""
    host = urlsplit(url).hostname or ""
    try:
        addresses = {info[4][0] for info in await asyncio.get_running_loop().getaddrinfo(host, None)}
    except OSError:
        return False
    return any(ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in addresses)
