"""Asks a Prometheus server, or one that speaks its API, for series of vLLM's metrics. Secrets stay here."""

import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from itertools import pairwise
from typing import IO, TypeVar

import msgspec
import numpy as np

from analysis.production.series import (
    POOL_INFO,
    RUNNING,
    SERVER_GAUGES,
    SERVER_HISTOGRAMS,
    SIMULATED_INFO,
    DeploymentHistory,
    TimeSeries,
    chosen_model,
    scalar_pattern,
    short_name,
)
from analysis.statistics.arrays import Bools
from loadtest.credentials import credentials_in, shown_address, split_credentials, without_secrets
from loadtest.errors import InputError

TOKEN_VARIABLE = "PROMETHEUS_TOKEN"
"""Environment variable with a bearer token for the Prometheus server."""
QUERY_TIMEOUT_S = 120.0
NOW_S = 600.0
"""What a server said in the last so many seconds counts as what it says now."""
MAX_GAUGE_POINTS = 10_000
"""Points of a series of gauges. Prometheus refuses more than 11,000."""
MAX_COUNTER_WINDOWS = 1_000
WINDOWS_S = (5, 10, 20, 30, 60, 120, 300, 600, 900, 1200, 1800, 3600, 7200, 14400, 21600, 43200, 86400)
"""Lengths of the windows in which counters are read. Each divides an hour or is whole hours."""
SCRAPES_A_WINDOW = 4
"""Fewest scrapes in a window: what is counted then lies in the right one, but for a quarter."""

Content = TypeVar("Content")


class _Labelled(msgspec.Struct):
    metric: dict[str, str]


class _Ranged(_Labelled):
    values: list[tuple[float, str]]


class _RangeData(msgspec.Struct):
    result: list[_Ranged]


class _RangeAnswer(msgspec.Struct):
    data: _RangeData


class _SeriesAnswer(msgspec.Struct):
    data: list[dict[str, str]]


class _SameServerOnly(urllib.request.HTTPRedirectHandler):
    """Follows no redirect to another server, because the request holds credentials."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if urllib.parse.urlsplit(newurl)[:2] != urllib.parse.urlsplit(req.full_url)[:2]:
            fp.close()
            raise InputError(
                f"{shown_address(req.full_url)} redirects to {shown_address(newurl)}: give that address."
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class PrometheusApi:
    """The HTTP API of one Prometheus server: https://prometheus.io/docs/prometheus/latest/querying/api/."""

    def __init__(self, address: str, *, token: str | None) -> None:
        base, basic = split_credentials(address)
        if urllib.parse.urlsplit(base).scheme not in ("http", "https"):
            raise InputError(
                f"--prometheus {shown_address(address)} is not an address such as http://HOST:9090."
            )
        if basic and token:
            raise InputError(
                f"--prometheus has credentials, and {TOKEN_VARIABLE} is set: Prometheus takes one of both."
            )
        self.shown = shown_address(base).rstrip("/")
        self._base = base.rstrip("/")
        self._secrets = frozenset(credentials_in(address) | ({token} if token else set()))
        authorization = f"Bearer {token}" if token else basic
        self._headers = {"Authorization": authorization} if authorization else {}
        self._opener = urllib.request.build_opener(_SameServerOnly)

    def label_sets(self, selector: str, *, start_s: float, end_s: float) -> list[dict[str, str]]:
        """Returns the labels of each series that was there between two Unix times."""
        query = {"match[]": selector, "start": f"{start_s:.3f}", "end": f"{end_s:.3f}"}
        return self._ask("series", query, _SeriesAnswer).data

    def ranged(self, query: str, *, start_s: float, end_s: float, step_s: float) -> list[TimeSeries]:
        """Returns the values of an expression on a grid of times."""
        asked = {"query": query, "start": f"{start_s:.3f}", "end": f"{end_s:.3f}", "step": f"{step_s:g}"}
        series = []
        for one in self._ask("query_range", asked, _RangeAnswer).data.result:
            name = short_name(one.metric.pop("__name__", ""))
            at = np.array([unix_s for unix_s, _ in one.values])
            values = np.array([float(value) for _, value in one.values])
            series.append(TimeSeries(name=name, labels=one.metric, unix_s=at, values=values))
        return series

    def _ask(self, what: str, query: dict[str, str], kind: type[Content]) -> Content:
        address = f"{self._base}/api/v1/{what}?{urllib.parse.urlencode(query)}"
        request = urllib.request.Request(address, headers=self._headers)
        try:
            with self._opener.open(request, timeout=QUERY_TIMEOUT_S) as answer:
                return msgspec.json.decode(answer.read(), type=kind)
        except urllib.error.HTTPError as problem:
            with problem:
                raise InputError(self._words(f"answered {problem.code}{_reason(problem)}")) from None
        except urllib.error.URLError as problem:
            raise InputError(self._words(f"cannot be reached ({problem.reason})")) from None
        except msgspec.MsgspecError:
            raise InputError(
                self._words("does not answer as Prometheus does: give the address before /api/v1")
            ) from None
        except (OSError, http.client.HTTPException, ValueError) as problem:
            raise InputError(self._words(f"did not answer in HTTP ({type(problem).__name__})")) from None

    def _words(self, what: str) -> str:
        return without_secrets(f"Prometheus at {self.shown} {what}.", self._secrets)


def _reason(problem: urllib.error.HTTPError) -> str:
    """Returns what the server says of an error, behind a colon; empty if it says nothing of Prometheus."""
    try:
        said = json.loads(problem.read(4096))["error"]
    except (ValueError, KeyError, TypeError, OSError):
        if problem.code in (401, 403):
            return f": it wants credentials, in the address or as a token in {TOKEN_VARIABLE}"
        return ""
    return f": {str(said).rstrip('.')}"


def read_prometheus(
    address: str, *, range_s: float, model: str | None, selector: str, end_unix_s: float | None = None
) -> DeploymentHistory:
    """Reads the last `range_s` seconds of one model's engines.

    selector: further matchers of labels, as in PromQL, such as `job="vllm"`. Raises InputError where nothing
    can be read.
    """
    api = PrometheusApi(address, token=os.environ.get(TOKEN_VARIABLE) or None)
    end_s = end_unix_s or time.time()
    start_s = end_s - range_s
    chosen = _chosen(api, model, selector, start_s=start_s, end_s=end_s)
    only = f"model_name={_quoted(chosen)},{selector}".rstrip(",")
    names = "|".join(name for names in SERVER_GAUGES.values() for name in names)
    step_s = max(1.0, np.ceil(range_s / MAX_GAUGE_POINTS))
    fine = {"start_s": start_s, "end_s": end_s, "step_s": step_s}
    gauges = api.ranged(f'{{__name__=~"vllm:(?:{names})",{only}}}', **fine)
    scraped = api.ranged(f"timestamp(vllm:{RUNNING}{{{only}}})", **fine)
    window_s = _window_s(range_s, scraped)
    coarse = {
        "start_s": np.ceil(start_s / window_s) * window_s,
        "end_s": np.floor(end_s / window_s) * window_s,
        "step_s": window_s,
    }
    counters = api.ranged(f'{{__name__=~"{scalar_pattern()}",{only}}}', **coarse)
    for histogram in SERVER_HISTOGRAMS.values():
        pattern = f"vllm:(?:{'|'.join(histogram)})_(?:bucket|sum)"
        counters += api.ranged(f'{{__name__=~"{pattern}",{only}}}', **coarse)
    infos = f'__name__=~"vllm:{POOL_INFO}|{SIMULATED_INFO}"'
    matcher = f"{{{f'{infos},{selector}'.rstrip(',')}}}"
    found = api.label_sets(matcher, start_s=start_s, end_s=end_s)
    # Once more, so that those of now come last: a server may have begun again with another pool.
    found += api.label_sets(matcher, start_s=max(start_s, end_s - NOW_S), end_s=end_s)
    return DeploymentHistory(
        source=f"Prometheus at {api.shown}",
        model=chosen,
        gauges=[_each_scrape_once(one, scraped) for one in gauges],
        counters=counters,
        infos=[(short_name(labels.pop("__name__")), labels) for labels in found],
    )


def _chosen(api: PrometheusApi, model: str | None, selector: str, *, start_s: float, end_s: float) -> str:
    matcher = f"vllm:{RUNNING}{{{selector}}}"
    found = api.label_sets(matcher, start_s=start_s, end_s=end_s)
    if not found:
        raise InputError(
            f"Prometheus at {api.shown} has no series {matcher} in this time: does it scrape vLLM? "
            "A longer --range or another --selector may find it."
        )
    return chosen_model(
        sorted({labels.get("model_name", "") for labels in found}), model, source=f"Prometheus at {api.shown}"
    )


def _quoted(text: str) -> str:
    """Writes a text as a string of PromQL."""
    return '"' + text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") + '"'


def _window_s(range_s: float, scraped: Sequence[TimeSeries]) -> float:
    gaps = [np.diff(np.unique(one.values)) for one in scraped]
    seen = np.concatenate([np.empty(0), *gaps])
    least = SCRAPES_A_WINDOW * float(np.median(seen)) if len(seen) else 0.0
    wanted = max(range_s / MAX_COUNTER_WINDOWS, least)
    return float(next((one for one in WINDOWS_S if one >= wanted), WINDOWS_S[-1]))


def _each_scrape_once(gauge: TimeSeries, scraped: Sequence[TimeSeries]) -> TimeSeries:
    """Leaves out the points of a grid that repeat an earlier scrape: where the grid is finer than scrapes."""
    times: dict[float, float] = {}
    for one in scraped:
        if one.labels == gauge.labels:
            times = dict(zip(one.unix_s.tolist(), one.values.tolist(), strict=True))
    taken = [times.get(unix_s, unix_s) for unix_s in gauge.unix_s.tolist()]
    new: Bools = np.array([True, *(now > before for before, now in pairwise(taken))][: len(taken)])
    return TimeSeries(
        name=gauge.name, labels=gauge.labels, unix_s=gauge.unix_s[new], values=gauge.values[new]
    )
