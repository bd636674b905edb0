"""Fetches pages of metrics over HTTP, and says in words what is at an address instead. Knows no engine's
figures."""

import asyncio
import re
import ssl
from collections.abc import Mapping
from urllib.parse import urljoin, urlsplit

import aiohttp

from loadtest.credentials import shown_address
from loadtest.server.endpoints import connection_problem

FETCH_TIMEOUT_S = 5.0
MAX_PAGE_BYTES = 32 * 1024**2
"""Largest page that is read. vLLM's have about 100 kB."""
MAX_REDIRECTS = 3
_OTHER_ENGINES = {
    "llama.cpp": r"llamacpp:",
    "SGLang": r"sglang[:_]",
    "TGI": r"tgi_",
    "Triton": r"nv_(?:inference|gpu|cpu)_|nv_trt_llm_",
    "TensorRT-LLM": r"trtllm_",
    "LMDeploy": r"lmdeploy[:_]",
    "LiteLLM": r"litellm_",
    "Envoy": r"envoy_",
    "HAProxy": r"haproxy_",
    "NGINX": r"nginx_",
}
"""Prefixes of the metrics of engines and gateways that are not vLLM."""
_METRIC = re.compile(r"^[a-zA-Z_:][\w:]*(?:\{.*\})? +[-+\w.]", re.MULTILINE)


class PageError(Exception):
    """A page could not be read. The message says what happened instead, after the words "the address"."""


async def fetch_page(session: aiohttp.ClientSession, url: str, headers: Mapping[str, str]) -> str:
    """Returns the text at an address. Follows redirects within the same server only, because the headers hold
    its credentials. Raises PageError."""
    origin = urlsplit(url)[:2]
    try:
        async with asyncio.timeout(FETCH_TIMEOUT_S):
            for _ in range(1 + MAX_REDIRECTS):
                text, location = await _get(session, url, headers)
                if location is None:
                    return text
                url = urljoin(url, location)
                if urlsplit(url)[:2] != origin:
                    raise PageError(f"redirects to {shown_address(url)}")
            raise PageError(f"redirects more than {MAX_REDIRECTS} times")
    except TimeoutError:
        raise PageError(f"did not answer within {FETCH_TIMEOUT_S:g} s") from None
    except aiohttp.ClientConnectorError as error:
        raise PageError(f"cannot be reached ({connection_problem(error)})") from None
    except (aiohttp.ClientError, OSError) as error:
        raise PageError(f"did not answer in HTTP ({type(error).__name__})") from None


async def _get(
    session: aiohttp.ClientSession, url: str, headers: Mapping[str, str]
) -> tuple[str, str | None]:
    """Returns two values: the text of the page, and the address to which it redirects, if it does."""
    async with session.get(url, headers=headers, allow_redirects=False) as response:
        location = response.headers.get("Location")
        if response.status in (301, 302, 303, 307, 308) and location:
            return "", location
        if response.status != 200:
            raise PageError(f"answered {response.status}")
        body = bytearray()
        async for piece in response.content.iter_chunked(1 << 16):
            body += piece
            if len(body) > MAX_PAGE_BYTES:
                raise PageError(f"sent more than {MAX_PAGE_BYTES >> 20} MiB")
        # Prometheus' text is UTF-8 by definition; servers may state any charset.
        return body.decode("utf-8", "replace"), None


def open_metrics_session(tls: ssl.SSLContext | None, *, reuse: bool = True) -> aiohttp.ClientSession:
    """Opens a session for pages of metrics. reuse: whether a connection is used for more than one page;
    without it, a balancer of connections chooses a replica for each page."""
    connector = aiohttp.TCPConnector(ssl=tls if tls is not None else True, force_close=not reuse)
    return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())


def describe_page(page: str) -> str:
    """Says what a page without vLLM's metrics has, after the words "the address"."""
    for name, prefix in _OTHER_ENGINES.items():
        if re.search(f"^{prefix}", page, re.MULTILINE):
            return f"has metrics of {name}, and none of vLLM's names"
    if "vllm:" in page:
        return "has metrics of vLLM, and none that tells the state of an engine"
    if _METRIC.search(page):
        return "has metrics, and none of vLLM's names"
    return "answered, but not with metrics"
