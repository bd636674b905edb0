"""What is read from /metrics and from a DCGM exporter, over real sockets."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web

from loadtest.client.target import MetricsSource, Target
from loadtest.errors import InputError
from loadtest.record import ServerSample
from loadtest.server.gpu_sensors import DcgmGpus
from loadtest.server.gpus import choose_gpus
from loadtest.server.scrape import Scraper
from loadtest.server.vllm import read_server_info, read_server_samples

INFO = (
    'vllm:cache_config_info{block_size="16",cache_dtype="auto",enable_prefix_caching="True",'
    'gpu_memory_utilization="0.9",kv_cache_memory_bytes="%s",kv_cache_size_tokens="4096",'
    'num_gpu_blocks="256",num_gpu_blocks_override="%s",engine="0"} 1.0\n'
)
PAGE = """# HELP vllm:num_requests_running Number of requests.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 1.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="deferred"} 1.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:num_preemptions_total{engine="0",model_name="m"} 7.0
vllm:num_preemptions_created{engine="0",model_name="m"} 1.7e+09
vllm:prompt_tokens_total{engine="0",model_name="m"} 100.0
vllm:prompt_tokens_cached_total{engine="0",model_name="m"} 55.0
vllm:generation_tokens_total{engine="0",model_name="m"} 200.0
vllm:request_success_total{engine="0",finished_reason="stop",model_name="m"} 4.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="m"} 5.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.1",model_name="m"} 4.0
"""


def test_one_row_holds_what_the_page_says_and_the_rest_is_missing() -> None:
    assert read_server_samples(PAGE, model="m", unix_s=5.0) == [
        ServerSample(
            unix_s=5.0,
            engine="0",
            running=3.0,
            waiting=2.0,
            waiting_capacity=1.0,
            kv_cache_usage=0.25,
            preemptions_total=7.0,
            prompt_tokens_total=100.0,
            generation_tokens_total=200.0,
            finished_total=9.0,
        )
    ]


def test_each_row_tells_the_blocks_of_its_engine() -> None:
    page = PAGE + INFO % ("None", "None") + PAGE.replace('engine="0"', 'engine="1"')
    page += (INFO % ("None", "None")).replace('engine="0"', 'engine="1"').replace('"256"', '"512"')
    rows = read_server_samples(page, model="m", unix_s=5.0)
    assert [row.num_gpu_blocks for row in rows] == [256, 512]


def test_the_servers_histograms_and_its_start_are_read() -> None:
    page = "process_start_time_seconds 1.7e9\n" + "".join(
        f'vllm:{name}_{part}{{engine="0",model_name="m"}} {number}{exemplar}\n'
        for number, name in enumerate(
            (
                "time_to_first_token_seconds",
                "time_per_output_token_seconds",
                "request_time_per_output_token_seconds",
                "e2e_request_latency_seconds",
                "request_queue_time_seconds",
            )
        )
        for part, exemplar in (("sum", ' # {trace_id="a"} 0.5'), ("count", ""))
    )
    (row,) = read_server_samples(page, model="m", unix_s=0)
    assert (row.ttft_sum_s, row.tpot_sum_s, row.e2e_sum_s, row.queue_sum_s) == (0, 2, 3, 4)
    assert (row.ttft_count, row.tpot_count, row.e2e_count, row.queue_count) == (0, 2, 3, 4)
    assert row.started_unix_s == 1.7e9
    (older,) = read_server_samples(
        'vllm:time_per_output_token_seconds_sum{model_name="m"} 7\n', model="m", unix_s=0
    )
    assert (older.tpot_sum_s, older.tpot_count, older.started_unix_s) == (7, None, None)


def test_a_gauge_under_two_names_counts_once_and_engines_add_up_on_their_own() -> None:
    page = "".join(
        f'vllm:{name}{{engine="{engine}",model_name="m"}} 0.{engine + 1}\n'
        for name in ("gpu_cache_usage_perc", "kv_cache_usage_perc")
        for engine in (0, 1)
    )
    assert [row.kv_cache_usage for row in read_server_samples(page, model="m", unix_s=0)] == [0.1, 0.2]


def test_a_metric_without_an_engine_makes_no_engine_of_its_own() -> None:
    page = (
        'vllm:num_requests_running{engine="1",model_name="m"} 3\n'
        'vllm:admission_rejections_total{model_name="m",reason="max_num_queued_reqs"} 2\n'
    )
    (row,) = read_server_samples(page, model="m", unix_s=0)
    assert (row.engine, row.running, row.rejections_total) == ("1", 3, 2)


def test_older_names_are_understood() -> None:
    page = 'vllm:gpu_cache_usage_perc{model_name="m"} 0.5\nvllm:gpu_prefix_cache_hits{model_name="m"} 9\n'
    (row,) = read_server_samples(page, model="m", unix_s=0)
    assert (row.kv_cache_usage, row.prefix_cache_hits_total) == (0.5, 9.0)


def test_each_engine_has_a_row_and_other_models_have_none() -> None:
    page = "".join(
        f'vllm:num_requests_running{{engine="{engine}",model_name="{model}"}} {engine}\n'
        for engine in (0, 1)
        for model in ("m", "other")
    )
    assert [(row.engine, row.running) for row in read_server_samples(page, model="m", unix_s=0)] == [
        ("0", 0.0),
        ("1", 1.0),
    ]


def test_bytes_a_token_come_from_the_pool_only_without_an_override() -> None:
    plain = read_server_info(INFO % (4096 * 2048, "None"))
    assert (plain.kv_bytes_per_token, plain.num_gpu_blocks, plain.block_size) == (2048, 256, 16)
    assert plain.enable_prefix_caching is True
    assert read_server_info(INFO % (4096 * 2048, "256")).kv_bytes_per_token is None
    assert read_server_info(INFO % ("None", "None")).kv_bytes_per_token is None
    assert read_server_info("").num_gpu_blocks is None


def target(url: str) -> Target:
    return Target(
        shown=url,
        api_url=f"{url}/v1",
        metrics=[MetricsSource(urls=[f"{url}/metrics"], headers={})],
        headers={},
        ca_file=None,
    )


def serving(pages: list[web.Response], test: Callable[[str], Awaitable[None]]) -> None:
    """Answers each request with the next page."""

    async def answer(_: web.Request) -> web.Response:
        return pages.pop(0)

    async def run() -> None:
        app = web.Application()
        app.router.add_get("/metrics", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            await test(f"http://127.0.0.1:{runner.addresses[0][1]}")
        finally:
            await runner.cleanup()

    asyncio.run(run())


def test_metrics_that_die_in_the_middle_leave_a_row_with_the_error() -> None:
    pages = [
        web.Response(text=PAGE),
        web.Response(text=PAGE),
        web.Response(status=500),
        web.Response(text="hi"),
    ]

    async def test(url: str) -> None:
        scraper = Scraper(target(url), model="m", gpus=None)
        (finding,) = await scraper.find()
        assert finding.page is not None
        rows = [row for _ in range(3) for row in await scraper.sample()]
        await scraper.close()
        assert [row.running for row in rows] == [3.0, None, None]
        assert [row.error is None for row in rows] == [True, False, False]

    serving(pages, test)


def test_a_page_that_is_not_vllms_is_not_taken_for_metrics() -> None:
    async def test(url: str) -> None:
        scraper = Scraper(target(url), model="m", gpus=None)
        (finding,) = await scraper.find()
        assert finding.page is None
        assert "has metrics, and none of vLLM's names" in finding.words
        assert await scraper.sample() == []
        await scraper.close()

    serving([web.Response(text="process_cpu_seconds_total 3\n")], test)


def test_a_dcgm_exporter_gives_the_sum_and_each_gpu() -> None:
    page = "".join(
        f'DCGM_FI_DEV_{name}{{gpu="{gpu}",modelName="Tesla T4"}} {value}\n'
        for gpu, used in ((0, 1000), (1, 3000))
        for name, value in (("FB_USED", used), ("FB_FREE", 15000 - used), ("GPU_UTIL", 50))
    )

    async def test(url: str) -> None:
        gpus = (await choose_gpus(url, url="http://192.0.2.1:8000/v1")).source
        assert isinstance(gpus, DcgmGpus)
        scraper = Scraper(target(url), model="m", gpus=gpus)
        (row,) = await scraper.sample()
        await scraper.close()
        assert row.vram_used_bytes == 4000 * 1024**2
        assert row.vram_used_bytes_each == [1000 * 1024**2, 3000 * 1024**2]
        assert row.gpu_util == 0.5
        assert scraper.gpu is not None
        assert (scraper.gpu.name, scraper.gpu.count, scraper.gpu.vram_bytes) == (
            "Tesla T4",
            2,
            30000 * 1024**2,
        )

    serving([web.Response(text=page)], test)


def test_no_gpu_here_is_missing_with_auto_and_an_error_when_asked_for() -> None:
    here = "http://127.0.0.1:8000/v1"
    assert asyncio.run(choose_gpus("off", url=here)).source is None
    assert asyncio.run(choose_gpus("auto", url="http://192.0.2.1:8000/v1")).source is None
    with pytest.raises(InputError, match="must be auto, nvml, off"):
        asyncio.run(choose_gpus("gpu0", url=here))
