"""Samples the server's metrics and its GPUs' memory during a run. Knows no Locust and no statistics."""

import asyncio
import logging
from collections.abc import Callable

import aiohttp
import msgspec

from loadtest.client.target import Target
from loadtest.clock import unix_now
from loadtest.record import GpuInfo, ServerSample
from loadtest.server.gpu_sensors import DcgmGpus, NvmlGpus
from loadtest.server.vllm import read_server_samples

logger = logging.getLogger(__name__)

FETCH_TIMEOUT_S = 5.0


class Scraper:
    """Reads the metrics of one server and its GPUs, over an HTTP session of its own."""

    def __init__(self, target: Target, *, model: str, gpus: NvmlGpus | DcgmGpus | None) -> None:
        self._target = target
        self._model = model
        self.gpus = gpus
        self._session: aiohttp.ClientSession | None = None
        self.url: str | None = None
        """Address at which /metrics answered; None before `find`, and if there are no metrics."""

    @property
    def gpu(self) -> GpuInfo | None:
        """The server's GPUs; None if they are unknown."""
        return self.gpus.info if self.gpus and self.gpus.info.count else None

    async def find(self) -> str | None:
        """Looks for vLLM's metrics at the target's addresses, one after the other. Returns the first page
        that holds them; None if there is none."""
        for url in self._target.metrics_urls:
            try:
                text = await self._fetch(url, self._target.metrics_headers)
                if read_server_samples(text, model=self._model, unix_s=0):
                    self.url = url
                    return text
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
                continue
        return None

    async def sample(self) -> list[ServerSample]:
        """Reads the current state of the server and returns one row for each engine. If the server's metrics
        cannot be read, returns one row with the reason in `error`. Returns no rows if there are neither
        metrics nor GPUs to read."""
        unix_s = unix_now()
        rows, error = await self._engines(unix_s)
        error = error or await self._refresh_gpus()
        if not rows:
            if error is None and self.gpus is None:
                return []
            rows = [ServerSample(unix_s=unix_s, error=error)]
        if self.gpus is None or self.gpus.used_bytes_each is None:
            return rows
        each = self.gpus.used_bytes_each
        first = msgspec.structs.replace(
            rows[0], vram_used_bytes=sum(each), vram_used_bytes_each=each, gpu_util=self.gpus.util
        )
        return [first, *rows[1:]]

    async def follow(self, *, seconds: float, take: Callable[[ServerSample], object]) -> None:
        """Takes a sample every `seconds` and passes each of its rows to `take`. The first sample is taken
        after one interval. Runs until it is cancelled."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due = max(due + seconds, loop.time())
            await asyncio.sleep(due - loop.time())
            for row in await self.sample():
                take(row)

    async def settle(self, *, limit_s: float = 5.0) -> None:
        """Waits until the server runs no request and its token counter no longer changes, but at most
        `limit_s` seconds. After this, the counters can be compared with the recorded requests."""
        loop = asyncio.get_running_loop()
        until = loop.time() + limit_s
        before: list[tuple[float | None, float | None]] | None = None
        while self.url is not None and loop.time() < until:
            now = [(row.running, row.generation_tokens_total) for row in await self.sample()]
            if now == before and not any(running for running, _ in now):
                return
            before = now
            await asyncio.sleep(0.3)

    async def close(self) -> None:
        """Closes the HTTP session."""
        if self._session is not None:
            await self._session.close()

    async def _engines(self, unix_s: float) -> tuple[list[ServerSample], str | None]:
        if self.url is None:
            return [], None
        try:
            text = await self._fetch(self.url, self._target.metrics_headers)
            rows = read_server_samples(text, model=self._model, unix_s=unix_s)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            return [], f"/metrics: {type(error).__name__}"
        return rows, None if rows else "/metrics no longer holds vLLM's figures"

    async def _refresh_gpus(self) -> str | None:
        if not isinstance(self.gpus, DcgmGpus):
            return None
        try:
            self.gpus.read(await self._fetch(self.gpus.url, self.gpus.headers))
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            self.gpus.used_bytes_each = self.gpus.util = None
            return f"DCGM exporter: {type(error).__name__}"
        return None

    async def _fetch(self, url: str, headers: dict[str, str]) -> str:
        if self._session is None:
            tls = self._target.tls()
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=tls if tls is not None else True),
                timeout=aiohttp.ClientTimeout(total=FETCH_TIMEOUT_S),
            )
        async with self._session.get(url, headers=headers) as response:
            response.raise_for_status()
            return await response.text()
