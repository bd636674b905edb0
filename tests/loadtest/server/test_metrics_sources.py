"""Where metrics are looked for, what is there instead, and several replicas, over real sockets."""

import asyncio
import gzip
import itertools
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web

from loadtest.client.target import make_target
from loadtest.record import ServerSample
from loadtest.run.lasting import keep_running
from loadtest.server.gpus import choose_gpus
from loadtest.server.preflight import Preflight, inspect_server, preflight_summary
from loadtest.server.scrape import MetricsFinding, Scraper
from loadtest.settings import Settings
from testing.processes import free_port, gateway, simulator
from testing.servers.imitation import ImitatedAnswer, Imitation, imitated_server, respond

PAGE = """vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:generation_tokens_total{engine="0",model_name="m"} 200.0
"""
PageHandler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def always(answer: ImitatedAnswer, **headers: str) -> PageHandler:
    async def handle(_: web.Request) -> web.StreamResponse:
        response = respond(answer)
        response.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
        return response

    return handle


def look(
    metrics: PageHandler | None, metrics_url: str | None = None
) -> tuple[list[MetricsFinding], list[ServerSample]]:
    """Returns what is found, and the rows of one sample. `{url}` in metrics_url is the server's address."""

    async def run() -> tuple[list[MetricsFinding], list[ServerSample]]:
        async with imitated_server(Imitation(metrics=metrics)) as url:
            given = None if metrics_url is None else metrics_url.replace("{url}", url)
            scraper = Scraper(make_target(url, Settings(metrics_url=given)), model="m", gpus=None)
            findings = await scraper.find()
            rows = await scraper.sample()
            await scraper.close()
            return findings, rows

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        (None, "answered 404"),
        (always((401, "no")), "answered 401"),
        (
            always((302, ""), Location="http://login.example/?next=secret"),
            "redirects to http://login.example/",
        ),
        (always((200, "<html>Sign in</html>")), "answered, but not with metrics"),
        (
            always((200, "llamacpp:requests_processing 1\n")),
            "has metrics of llama.cpp, and none of vLLM's names",
        ),
        (always((200, 'sglang:num_running_reqs{model_name="m"} 1\n')), "has metrics of SGLang"),
        (always((200, "process_cpu_seconds_total 3\n")), "has metrics, and none of vLLM's names"),
        (always((200, "vllm:num_requests_running{ 3\n")), "is not in Prometheus' format"),
    ],
)
def test_what_is_found_instead_of_metrics_is_said(metrics: PageHandler | None, words: str) -> None:
    (finding,), rows = look(metrics)
    assert finding.page is None
    assert finding.words.startswith("http://127.0.0.1:")
    assert f"/metrics {words}" in finding.words
    assert "secret" not in finding.words
    assert rows == []


def test_a_page_that_does_not_come_is_given_up_in_time() -> None:
    async def hang(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(60)
        return web.Response()

    (finding,), _ = look(hang)
    assert finding.words.endswith("did not answer within 5 s")


@pytest.mark.parametrize(
    "metrics",
    [
        always((200, gzip.compress(PAGE.encode())), Content_Encoding="gzip"),
        always((200, PAGE), Content_Type="text/plain; charset=klingon"),
        always((200, b'other{name="caf\xe9"} 1\n' + PAGE.encode()), Content_Type="text/plain"),
        always(
            (200, PAGE.replace("200.0", '200.0 1700000000.5 # {trace_id="a"} 1.0') + "# EOF\n"),
            Content_Type="application/openmetrics-text; version=1.0.0; charset=utf-8",
        ),
    ],
)
def test_pages_as_real_servers_and_proxies_send_them_are_read(metrics: PageHandler) -> None:
    (finding,), (row,) = look(metrics)
    assert finding.page is not None
    assert (row.running, row.generation_tokens_total, row.error) == (3.0, 200.0, None)


def test_a_redirect_within_the_server_is_followed() -> None:
    async def slash(http: web.Request) -> web.StreamResponse:
        if "end" in http.query:
            return web.Response(text=PAGE)
        raise web.HTTPTemporaryRedirect("/metrics?end=1")

    (finding,), (row,) = look(slash)
    assert (finding.page is not None, row.running) == (True, 3.0)


def test_a_server_that_redirects_in_circles_is_left() -> None:
    (finding,), _ = look(always((307, ""), Location="/metrics"))
    assert "redirects more than 3 times" in finding.words


def test_each_address_is_a_replica_with_its_number_and_one_that_fails_loses_no_other() -> None:
    missing = f"http://127.0.0.1:{free_port()}/metrics"
    found, rows = look(always((200, PAGE)), f"{{url}}/metrics,{missing}, {{url}}/metrics")
    assert [finding.page is not None for finding in found] == [True, False, True]
    assert "cannot be reached (Connection refused)" in found[1].words
    assert [(row.engine, row.running) for row in rows] == [("1/0", 3.0), ("2", None), ("3/0", 3.0)]
    assert "Connection refused" in str(rows[1].error)
    assert len({row.unix_s for row in rows}) == 1


def test_addresses_may_be_a_json_list() -> None:
    _, rows = look(always((200, PAGE)), '["{url}/metrics", "{url}/metrics?a=,http://b"]')
    assert [row.engine for row in rows] == ["1/0", "2/0"]


def test_a_replica_that_comes_and_goes_is_a_row_while_it_is_there() -> None:
    second = PAGE.replace('engine="0"', 'engine="1"')
    pages = iter([PAGE, PAGE, PAGE + second, PAGE])

    async def next_page(_: web.Request) -> web.StreamResponse:
        return web.Response(text=next(pages))

    async def run() -> list[list[str | None]]:
        async with imitated_server(Imitation(metrics=next_page)) as url:
            scraper = Scraper(make_target(url, Settings()), model="m", gpus=None)
            await scraper.find()
            samples = [await scraper.sample() for _ in range(3)]
            await scraper.close()
            return [[row.engine for row in rows] for rows in samples]

    assert asyncio.run(run()) == [["0"], ["0", "1"], ["0"]]


def test_an_error_of_the_dcgm_exporter_is_kept_beside_the_engines() -> None:
    dcgm = iter([(200, 'DCGM_FI_DEV_FB_USED{gpu="0"} 100\n'), (500, "no")])

    async def exporter(_: web.Request) -> web.StreamResponse:
        return respond(next(dcgm))

    async def run() -> list[list[ServerSample]]:
        async with (
            imitated_server(Imitation(metrics=always((200, PAGE)))) as url,
            imitated_server(Imitation(metrics=exporter)) as gpu_url,
        ):
            target = make_target(url, Settings())
            gpus = (await choose_gpus(gpu_url, url=target.api_url)).source
            scraper = Scraper(target, model="m", gpus=gpus)
            await scraper.find()
            samples = [await scraper.sample() for _ in range(2)]
            await scraper.close()
            return samples

    (good,), (engine, failed) = asyncio.run(run())
    assert (good.running, good.vram_used_bytes) == (3.0, 100 * 1024**2)
    assert (engine.running, engine.vram_used_bytes, engine.error) == (3.0, None, None)
    assert failed.running is None
    assert "DCGM exporter: http://127.0.0.1" in str(failed.error)
    assert "answered 500" in str(failed.error)


def test_work_that_fails_is_said_once_and_started_again(caplog: pytest.LogCaptureFixture) -> None:
    turn = itertools.count()

    async def work() -> None:
        if next(turn) < 2:
            raise LookupError("unknown encoding: klingon")

    asyncio.run(keep_running(work, what="Sampling"))
    assert next(turn) == 3
    assert caplog.text.count("Sampling failed") == 1
    assert "klingon" in caplog.text


def inspect(url: str, **settings: str) -> tuple[Preflight, list[ServerSample], str]:
    async def run() -> tuple[Preflight, list[ServerSample], str]:
        chosen = Settings(prompt_tokens="40", output_tokens="8", **settings)
        target = make_target(url, chosen)
        preflight, scraper = await inspect_server(target, chosen, nonce="n")
        rows = await scraper.sample()
        await scraper.close()
        return preflight, rows, "\n".join(preflight_summary(preflight, target))

    return asyncio.run(run())


def test_replicas_behind_one_address_are_named_and_each_one_s_address_is_taken() -> None:
    with simulator() as first, simulator() as second, gateway(first, second) as url:
        found, _, summary = inspect(url)
        (warning,) = [text for text in found.warnings if "replicas" in text]
        assert warning.startswith(f"Several replicas answer at {url}/metrics")
        assert "--metrics-url http://REPLICA1/metrics,http://REPLICA2/metrics" in summary
        one, _, _ = inspect(url, metrics_url=f"{first}/metrics")
        (warning,) = [text for text in one.warnings if "replicas" in text]
        assert "one of several replicas behind the address, or to another server" in warning
        both, rows, summary = inspect(url, metrics_url=f"{first}/metrics,{second}/metrics")
        assert both.warnings == []
        assert f"{first}/metrics; {second}/metrics" in summary
        assert [row.engine for row in rows] == ["1/0", "2/0"]
        assert all(row.generation_tokens_total for row in rows)


def test_metrics_of_another_server_are_told_by_their_counter() -> None:
    with simulator() as tested, simulator() as other:
        found, _, _ = inspect(tested, metrics_url=f"{other}/metrics")
    assert any("The metrics counted 0 of the " in warning for warning in found.warnings)


def test_metrics_that_are_off_were_not_asked_for() -> None:
    with simulator() as url:
        found, rows, summary = inspect(url, metrics_url="off")
    assert "metrics  not asked (off)" in summary
    assert (found.has_metrics, found.warnings, rows) == (False, [], [])
