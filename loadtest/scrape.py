"""vLLM's /metrics and GPU memory -> ServerSample. Missing stays missing. Knows no Locust, no statistics."""

import asyncio
import logging
import re
import time
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

import aiohttp
import msgspec
import pynvml
from prometheus_client.samples import Sample

from loadtest.client.target import Target, split_credentials
from loadtest.exposition import parse, read_samples
from loadtest.record import GpuInfo, ServerSample
from loadtest.settings import InputError

logger = logging.getLogger(__name__)

FETCH_TIMEOUT_S = 5.0

_DCGM_WANTED = re.compile(r"^DCGM_FI_DEV_(?:FB_USED|FB_FREE|GPU_UTIL)[{ ].*$", re.MULTILINE)
_MIB = 1024**2


class NvmlGpus:
    """This machine's GPUs, through NVIDIA's management library. Raises pynvml.NVMLError without one."""

    def __init__(self) -> None:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        if count == 0:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        self._handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(count)]
        total = sum(int(pynvml.nvmlDeviceGetMemoryInfo(handle).total) for handle in self._handles)
        name = pynvml.nvmlDeviceGetName(self._handles[0])
        name = name if isinstance(name, str) else name.decode()
        self.info = GpuInfo(name=name, count=count, vram_bytes=total)
        self.used_bytes_each: list[int] | None = None
        self.util: float | None = None
        self.refresh()

    def refresh(self) -> None:
        try:
            used = [int(pynvml.nvmlDeviceGetMemoryInfo(handle).used) for handle in self._handles]
            rates = [pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100 for handle in self._handles]
        except pynvml.NVMLError:
            self.used_bytes_each = self.util = None
            return
        self.used_bytes_each, self.util = used, sum(rates) / len(rates)


class DcgmGpus:
    """A remote machine's GPUs, through the address of its DCGM exporter."""

    def __init__(self, url: str) -> None:
        page = url if urlsplit(url).path.strip("/") else url.rstrip("/") + "/metrics"
        self.url, authorization = split_credentials(page)
        self.headers = {"Authorization": authorization} if authorization else {}
        self.info = GpuInfo(name=None, count=0, vram_bytes=None)
        self.used_bytes_each: list[int] | None = None
        self.util: float | None = None

    def refresh(self) -> None:
        """Nothing blocks here: `take` is given what the scraper fetched."""

    def take(self, text: str) -> None:
        """Reads the exporter's page. Raises ValueError on text that is not Prometheus' format."""
        samples = parse(text, wanted=_DCGM_WANTED)
        used = _by_gpu(samples, "DCGM_FI_DEV_FB_USED")
        free = _by_gpu(samples, "DCGM_FI_DEV_FB_FREE")
        rates = list(_by_gpu(samples, "DCGM_FI_DEV_GPU_UTIL").values())
        self.used_bytes_each = [round(value * _MIB) for value in used.values()] or None
        self.util = sum(rates) / len(rates) / 100 if rates else None
        names = [s.labels["modelName"] for s in samples if "modelName" in s.labels]
        self.info = GpuInfo(
            name=names[0] if names else None,
            count=len(used),
            vram_bytes=round((sum(used.values()) + sum(free.values())) * _MIB) if used and free else None,
        )


def _by_gpu(samples: Iterable[Sample], name: str) -> dict[str, float]:
    return {s.labels.get("gpu", "0"): s.value for s in samples if s.name == name}


def choose_gpus(setting: str, *, server_is_local: bool) -> NvmlGpus | DcgmGpus | None:
    """`auto`, `nvml`, `off` or the address of a DCGM exporter. Raises InputError."""
    if setting == "off" or (setting == "auto" and not server_is_local):
        return None
    if setting in ("auto", "nvml"):
        try:
            return NvmlGpus()
        except pynvml.NVMLError as error:
            if setting == "nvml":
                raise InputError(f"--gpu-metrics nvml: NVML does not work here ({error}).") from error
            return None
    if urlsplit(setting).scheme not in ("http", "https"):
        raise InputError("--gpu-metrics must be auto, nvml, off or the address of a DCGM exporter.")
    return DcgmGpus(setting)


class Scraper:
    """Reads one server's metrics over one session of its own."""

    def __init__(self, target: Target, *, model: str, gpus: NvmlGpus | DcgmGpus | None) -> None:
        self._target = target
        self._model = model
        self.gpus = gpus
        self._session: aiohttp.ClientSession | None = None
        self.url: str | None = None
        """Where /metrics answered; None until `find`, or when there is none."""

    @property
    def gpu(self) -> GpuInfo | None:
        return self.gpus.info if self.gpus and self.gpus.info.count else None

    async def find(self) -> str | None:
        """Looks for vLLM's metrics at the target's addresses and returns the page."""
        for url in self._target.metrics_urls:
            try:
                text = await self._fetch(url, self._target.metrics_headers)
                if read_samples(text, model=self._model, unix_s=0):
                    self.url = url
                    return text
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
                continue
        return None

    async def sample(self) -> list[ServerSample]:
        """The server now, one row for each engine. A failed scrape gives a row with `error`."""
        unix_s = time.time()
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
        """Samples every `seconds`, from one interval on, until cancelled."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due = max(due + seconds, loop.time())
            await asyncio.sleep(due - loop.time())
            for row in await self.sample():
                take(row)

    async def settle(self, *, limit_s: float = 5.0) -> None:
        """Waits, bounded, until nothing runs and the counters stand still: then they can be compared with
        the rows."""
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
        if self._session is not None:
            await self._session.close()

    async def _engines(self, unix_s: float) -> tuple[list[ServerSample], str | None]:
        if self.url is None:
            return [], None
        try:
            text = await self._fetch(self.url, self._target.metrics_headers)
            rows = read_samples(text, model=self._model, unix_s=unix_s)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            return [], f"/metrics: {type(error).__name__}"
        return rows, None if rows else "/metrics no longer holds vLLM's figures"

    async def _refresh_gpus(self) -> str | None:
        if not isinstance(self.gpus, DcgmGpus):
            return None
        try:
            self.gpus.take(await self._fetch(self.gpus.url, self.gpus.headers))
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
