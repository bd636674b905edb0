"""Reads /v1/models and /version of an OpenAI-compatible server. Knows no chat requests."""

import asyncio
import ipaddress
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from loadtest.client.target import Target
from loadtest.errors import InputError

ANSWER_TIMEOUT_S = 30.0
"""Time limit, in seconds, of requests that a server answers without computing."""


async def _get_json(session: aiohttp.ClientSession, url: str) -> Any:
    timeout = aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S)
    async with session.get(url, timeout=timeout, allow_redirects=False) as response:
        if response.status != 200:
            raise _RefusedError(response.status, response.headers.get("Location"))
        return await response.json(content_type=None)


class _RefusedError(Exception):
    """The server answered with a status other than 200."""

    def __init__(self, status: int, location: str | None) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status
        self.location = location


async def list_models(session: aiohttp.ClientSession, target: Target) -> list[dict[str, Any]]:
    """Returns the entries of /v1/models. Raises InputError, with the reason, if the server returns no such
    list."""
    url = f"{target.api_url}/models"
    try:
        listed = await _get_json(session, url)
        return [dict(entry) for entry in listed["data"] if isinstance(entry["id"], str)]
    except _RefusedError as refusal:
        raise InputError(_refusal_sentence(url, refusal)) from None
    except TimeoutError:
        raise InputError(f"{url} did not answer within {ANSWER_TIMEOUT_S:g} s.") from None
    except aiohttp.ClientConnectorSSLError as error:
        raise InputError(
            f"{target.shown}: no TLS connection ({_reason(error)}): if the server speaks plain HTTP, "
            "give --host http://..."
        ) from None
    except aiohttp.ClientConnectorCertificateError as error:
        raise InputError(
            f"{target.shown} has no certificate that is trusted here ({_reason(error)}): "
            "name its certificate authority with --ca-file."
        ) from None
    except aiohttp.ClientConnectorError as error:
        raise InputError(f"{target.shown} cannot be reached ({_reason(error)}).") from None
    except (aiohttp.ClientError, OSError) as error:
        raise InputError(f"{target.shown} does not speak HTTP ({type(error).__name__}).") from None
    except (ValueError, LookupError, TypeError):
        raise InputError(f"{url} is not the model list of an OpenAI-compatible server.") from None


def _reason(error: aiohttp.ClientConnectorError) -> str:
    return error.os_error.strerror or str(error.os_error) or type(error.os_error).__name__


def _refusal_sentence(url: str, refusal: _RefusedError) -> str:
    if refusal.status in (401, 403):
        return (
            f"{url} answered {refusal.status}: set the server's key as LOADTEST_API_KEY (or the right one)."
        )
    if refusal.location:
        return f"{url} redirects to {refusal.location}: give that server as --host."
    if refusal.status == 404:
        return f"{url} does not exist: --host is not an OpenAI-compatible server, or has another path prefix."
    return f"{url} answered {refusal.status}: the server is not ready, or not an OpenAI-compatible one."


async def server_version(session: aiohttp.ClientSession, target: Target) -> str | None:
    """Returns the version that the server states at /version; None if it states none."""
    try:
        answer = await _get_json(session, target.api_url.removesuffix("/v1") + "/version")
    except (_RefusedError, aiohttp.ClientError, OSError, TimeoutError, ValueError):
        return None
    return str(answer["version"]) if isinstance(answer, dict) and "version" in answer else None


def choose_model(listed: list[dict[str, Any]], wanted: str | None) -> tuple[str, dict[str, Any]]:
    """Returns two values: the name of the model to test, and its entry in /v1/models. The model is `wanted`,
    or the only listed model if `wanted` is None. Raises InputError, with the names to choose from, if
    `wanted` is not listed, or if it is None and the list does not have exactly one model."""
    names = [entry["id"] for entry in listed]
    if wanted is None and len(names) == 1:
        wanted = names[0]
    if wanted is None:
        listing = ", ".join(names)
        raise InputError(f"The server lists {len(names)} models; choose one with --model: {listing}.")
    if wanted not in names:
        raise InputError(f"The server does not serve '{wanted}'; --model can be: {', '.join(names)}.")
    return wanted, listed[names.index(wanted)]


async def is_local(url: str) -> bool:
    """Whether `url` points to this machine (a loopback address). If so, the GPUs of this machine are the
    server's."""
    host = urlsplit(url).hostname or ""
    try:
        addresses = {info[4][0] for info in await asyncio.get_running_loop().getaddrinfo(host, None)}
    except OSError:
        return False
    return any(ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in addresses)
