"""Reads memory and utilisation of GPUs, with NVML on this machine or from a remote DCGM exporter. Knows no
server."""

import re
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

import pynvml
from prometheus_client.samples import Sample

from loadtest.credentials import split_credentials
from loadtest.record import GpuInfo
from loadtest.server.prometheus import parse_samples
from loadtest.units import MIB

_DCGM_LINES = re.compile(r"^DCGM_FI_DEV_(?:FB_USED|FB_FREE|GPU_UTIL)[{ ].*$", re.MULTILINE)


class NvmlGpus:
    """GPUs of this machine, read with NVML, NVIDIA's management library."""

    def __init__(self, cards: Sequence[int] | None = None) -> None:
        """cards: the numbers of the GPUs to read; None: all. Raises pynvml.NVMLError if NVML does not work or
        finds no GPU."""
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        if count == 0:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        cards = range(count) if cards is None else cards
        count = len(cards)
        self._handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in cards]
        total = sum(int(pynvml.nvmlDeviceGetMemoryInfo(handle).total) for handle in self._handles)
        name = pynvml.nvmlDeviceGetName(self._handles[0])
        name = name if isinstance(name, str) else name.decode()
        self.info = GpuInfo(name=name, count=count, vram_bytes=total)
        self.used_bytes_each: list[int] | None = None
        self.util: float | None = None
        self.refresh()

    def refresh(self) -> None:
        """Reads `used_bytes_each` (bytes used on each GPU) and `util` (mean of all GPUs, 0 to 1). Both become
        None if reading fails."""
        try:
            used = [int(pynvml.nvmlDeviceGetMemoryInfo(handle).used) for handle in self._handles]
            rates = [pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100 for handle in self._handles]
        except pynvml.NVMLError:
            self.used_bytes_each = self.util = None
            return
        self.used_bytes_each, self.util = used, sum(rates) / len(rates)

    def processes(self) -> list[dict[int, int | None]]:
        """Returns, for each GPU, the bytes that each computing process uses there, by process id; None where
        the driver does not say."""
        return [
            {
                int(process.pid): None if process.usedGpuMemory is None else int(process.usedGpuMemory)
                for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
            }
            for handle in self._handles
        ]


class DcgmGpus:
    """The GPUs of a remote machine, read from the metrics page of its DCGM exporter."""

    def __init__(self, url: str) -> None:
        page = url if urlsplit(url).path.strip("/") else url.rstrip("/") + "/metrics"
        self.url, authorization = split_credentials(page)
        self.headers = {"Authorization": authorization} if authorization else {}
        self.info = GpuInfo(name=None, count=0, vram_bytes=None)
        self.used_bytes_each: list[int] | None = None
        self.util: float | None = None

    def refresh(self) -> None:
        """Does nothing: the scraper fetches the page and passes it to `read`."""

    def read(self, page: str) -> None:
        """Updates the GPUs, their memory and their utilisation from the exporter's page. Raises ValueError if
        the page is not in Prometheus' format."""
        samples = parse_samples(page, wanted=_DCGM_LINES)
        used = _by_gpu(samples, "DCGM_FI_DEV_FB_USED")
        free = _by_gpu(samples, "DCGM_FI_DEV_FB_FREE")
        rates = list(_by_gpu(samples, "DCGM_FI_DEV_GPU_UTIL").values())
        self.used_bytes_each = [round(value * MIB) for value in used.values()] or None
        self.util = sum(rates) / len(rates) / 100 if rates else None
        names = [s.labels["modelName"] for s in samples if "modelName" in s.labels]
        self.info = GpuInfo(
            name=names[0] if names else None,
            count=len(used),
            vram_bytes=round((sum(used.values()) + sum(free.values())) * MIB) if used and free else None,
        )


def _by_gpu(samples: Iterable[Sample], name: str) -> dict[str, float]:
    return {s.labels.get("gpu", "0"): s.value for s in samples if s.name == name}
