"""Samples the server's metrics and its GPUs' memory during a run. Knows no Locust and no statistics."""

import asyncio
import logging
from collections.abc import Callable

import aiohttp
import msgspec

from loadtest.client.target import MetricsSource, Target
from loadtest.clock import unix_now
from loadtest.credentials import shown_address
from loadtest.record import GpuInfo, ServerSample
from loadtest.server.gpu_sensors import DcgmGpus, NvmlGpus
from loadtest.server.metrics_page import PageError, describe_page, fetch_page, open_metrics_session
from loadtest.server.vllm import read_server_samples

logger = logging.getLogger(__name__)

LOOKS = 4
"""Pages that are fetched, each over a connection of its own, to see whether one address leads to several
replicas. If two replicas take turns or are chosen by chance, at least 7 of 8 such tries show both."""


class MetricsFinding(msgspec.Struct, kw_only=True, frozen=True):
    """What was found where the metrics of a server, or of one of its replicas, should be."""

    page: str | None
    """The page with vLLM's metrics; None if there is none."""
    words: str
    """Where the page is, or what is at each address that was asked."""


class _Source:
    """One server or replica whose metrics are read, and the address at which they are."""

    def __init__(self, source: MetricsSource, *, prefix: str) -> None:
        self.source = source
        self.prefix = prefix
        """What stands before the engine's label in each row: the number of this replica, if there are
        several."""
        self.url: str | None = None


class Scraper:
    """Reads the metrics of one server, or of its replicas, and of its GPUs, over an HTTP session of its
    own."""

    def __init__(self, target: Target, *, model: str, gpus: NvmlGpus | DcgmGpus | None) -> None:
        self._target = target
        self._model = model
        self.gpus = gpus
        self._session: aiohttp.ClientSession | None = None
        several = len(target.metrics) > 1
        self._sources = [
            _Source(source, prefix=f"{number}/" if several else "")
            for number, source in enumerate(target.metrics, 1)
        ]

    @property
    def found(self) -> bool:
        """Whether there are metrics to read, at least of one replica. False before `find`."""
        return any(source.url for source in self._sources)

    @property
    def gpu(self) -> GpuInfo | None:
        """The server's GPUs; None if they are unknown."""
        return self.gpus.info if self.gpus and self.gpus.info.count else None

    async def find(self) -> list[MetricsFinding]:
        """Looks for vLLM's metrics at the target's addresses. Returns what was found, for each replica. A
        replica that is named but cannot be reached now is asked again in each sample."""
        return list(await asyncio.gather(*map(self._find, self._sources)))

    async def _find(self, source: _Source) -> MetricsFinding:
        words, away = [], False
        for url in source.source.urls:
            try:
                text = await self._fetch(url, source.source.headers)
                if self._read(text, source, unix_s=0):
                    source.url = url
                    return MetricsFinding(page=text, words=shown_address(url))
                words.append(f"{shown_address(url)} {describe_page(text)}")
            except PageError as error:
                away = True
                words.append(f"{shown_address(url)} {error}")
        if away and len(self._sources) > 1:
            source.url = source.source.urls[0]
        return MetricsFinding(page=None, words="; ".join(words))

    async def sample(self) -> list[ServerSample]:
        """Reads the current state of the server and returns one row for each engine, all with the same time.
        For metrics that cannot be read, returns a row with the reason in `error`. Returns no rows if there
        are neither metrics nor GPUs to read."""
        unix_s = unix_now()
        sources = [source for source in self._sources if source.url is not None]
        pages = await asyncio.gather(*(self._rows(source, unix_s) for source in sources))
        rows = [row for page in pages for row in page]
        error = await self._refresh_gpus()
        used = self.gpus.used_bytes_each if self.gpus is not None else None
        if error is not None or (not rows and used is not None):
            rows.append(ServerSample(unix_s=unix_s, error=error))
        if used is None or self.gpus is None:
            return rows
        # The figures belong to no engine: the first row that was read carries them.
        at = next((i for i, row in enumerate(rows) if row.error is None), 0)
        rows[at] = msgspec.structs.replace(
            rows[at], vram_used_bytes=sum(used), vram_used_bytes_each=used, gpu_util=self.gpus.util
        )
        return rows

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
        while self.found and loop.time() < until:
            now = [(row.running, row.generation_tokens_total) for row in await self.sample()]
            if now == before and not any(running for running, _ in now):
                return
            before = now
            await asyncio.sleep(0.3)

    async def find_hidden_replicas(self) -> list[str]:
        """Returns the addresses, as they may be shown, that lead to several replicas: pages fetched one after
        another over new connections come from processes that started at different times, or count
        backwards."""
        return [
            shown_address(source.url)
            for source in self._sources
            if source.url is not None and await self._has_several(source, source.url)
        ]

    async def _has_several(self, source: _Source, url: str) -> bool:
        session = open_metrics_session(self._target.tls(), reuse=False)
        starts: set[float | None] = set()
        tokens: list[float] = []
        try:
            for _ in range(LOOKS):
                rows = self._read(await fetch_page(session, url, source.source.headers), source, unix_s=0)
                starts |= {row.started_unix_s for row in rows}
                tokens.append(sum(row.generation_tokens_total or 0 for row in rows))
        except PageError:
            return False
        finally:
            await session.close()
        return len(starts - {None}) > 1 or tokens != sorted(tokens)

    async def close(self) -> None:
        """Closes the HTTP session."""
        if self._session is not None:
            await self._session.close()

    def _read(self, page: str, source: _Source, *, unix_s: float) -> list[ServerSample]:
        try:
            rows = read_server_samples(page, model=self._model, unix_s=unix_s)
        except ValueError as error:
            raise PageError(f"is not in Prometheus' format ({error})") from None
        return [msgspec.structs.replace(row, engine=f"{source.prefix}{row.engine}") for row in rows]

    async def _rows(self, source: _Source, unix_s: float) -> list[ServerSample]:
        url = source.url or ""
        try:
            page = await self._fetch(url, source.source.headers)
            if rows := self._read(page, source, unix_s=unix_s):
                return rows
            error = describe_page(page)
        except PageError as problem:
            error = str(problem)
        engine = source.prefix.removesuffix("/") or None
        return [ServerSample(unix_s=unix_s, engine=engine, error=f"{shown_address(url)} {error}")]

    async def _refresh_gpus(self) -> str | None:
        if not isinstance(self.gpus, DcgmGpus):
            return None
        try:
            self.gpus.read(await self._fetch(self.gpus.url, self.gpus.headers))
        except (PageError, ValueError) as error:
            self.gpus.used_bytes_each = self.gpus.util = None
            return f"DCGM exporter: {shown_address(self.gpus.url)} {error}"
        return None

    async def _fetch(self, url: str, headers: dict[str, str]) -> str:
        if self._session is None:
            self._session = open_metrics_session(self._target.tls())
        return await fetch_page(self._session, url, headers)
