"""nginx, HAProxy and LiteLLM in front of the embedded server; and the server of llama.cpp."""

from pathlib import Path

from testing.field.case import Judged, case, judged, unless
from testing.field.commands import analyse_run, user_load
from testing.field.deployment import (
    SHORT_TRAFFIC,
    SWEEP,
    TRAFFIC,
    errors_of,
    is_memory_wall,
    memory_wall_right,
    refused_at_start,
    small_server,
)
from testing.gateways.running import MASTER_KEY, haproxy, litellm, llama_cpp, nginx
from testing.processes import gateway, simulator

STREAMING = "proxy_buffering off; proxy_http_version 1.1; proxy_set_header Connection '';"
GZIP = "gzip on; gzip_proxied any; gzip_types *; gzip_min_length 1;"


@case("nginx with gzip and its default buffering, HTTP/1.0 to the server")
def nginx_gathers(folder: Path) -> Judged:
    with small_server() as server, nginx(server, http=GZIP) as url:
        run = user_load(folder, url)(**SWEEP)
    answer, rows = analyse_run(folder), run.rows() if run.code == 0 else []
    return judged(
        f"{memory_wall_right()}; no failure",
        f"exit {run.code}, {len(rows)} rows, {errors_of(rows) or 'all ok'}; {answer.brief}",
        unless(len(rows) > 50 and not errors_of(rows), "failures"),
        unless(is_memory_wall(answer), "not the memory wall"),
    )


@case("nginx: limit_conn 6 (503)")
def nginx_limits_connections(folder: Path) -> Judged:
    zone = "limit_conn_zone $server_port zone=all:1m;"
    limit = f"limit_conn all 6; {STREAMING}"
    with small_server() as server, nginx(server, http=zone, location=limit) as url:
        metrics = f"{server}/metrics"
        user_load(folder, url)(**SHORT_TRAFFIC, levels="2,5,8", level_s="8", metrics_url=metrics)
    answer = analyse_run(folder)
    model = answer.model
    return judged(
        "5 or 6 users, errors (503)",
        answer.brief,
        unless(model.get("binding") == "errors" and model["max_users"] in (5, 6), "not 5 or 6 by errors"),
        unless(answer.says("503"), "the status is not said"),
    )


@case("nginx: limit_req 10 a second (429)", tested=False)
def nginx_limits_requests(folder: Path) -> Judged:
    zone = "limit_req_zone $server_port zone=all:1m rate=10r/s; limit_req_status 429;"
    limit = f"limit_req zone=all burst=2 nodelay; {STREAMING}"
    with small_server() as server, nginx(server, http=zone, location=limit) as url:
        metrics = f"{server}/metrics"
        user_load(folder, url)(**TRAFFIC, levels="1,2,4,8", level_s="6", metrics_url=metrics)
    answer = analyse_run(folder)
    return judged(
        "errors (429)",
        answer.brief,
        unless(answer.model.get("binding") == "errors", "not by errors"),
        unless(answer.says("429"), "the status is not said"),
    )


@case("nginx that speaks HTTP/2 only (listen ... http2 without TLS)")
def http2_only(folder: Path) -> Judged:
    with small_server() as server, nginx(server, listen="http2") as url:
        return refused_at_start(user_load(folder, url)(levels="1"), "HTTP/2")


@case("HAProxy without http-no-delay", tested=False)
def haproxy_in_front(folder: Path) -> Judged:
    with small_server() as server, haproxy([server]) as url:
        run = user_load(folder, url)(**SWEEP)
    answer = analyse_run(folder)
    return judged(
        memory_wall_right(),
        f"{answer.brief}; {errors_of(run.rows()) or 'all ok'}",
        unless(is_memory_wall(answer), "not the memory wall"),
    )


@case("HAProxy, round robin over two replicas")
def haproxy_takes_turns(folder: Path) -> Judged:
    with small_server() as first, small_server() as second, haproxy([first, second]) as url:
        both = f"{first}/metrics,{second}/metrics"
        user_load(folder, url)(**{**SWEEP, "levels": "8,16,24"}, metrics_url=both)
    answer = analyse_run(folder)
    model = answer.model
    right = model.get("binding") == "kv_cache" and 17 <= model["estimate_x"] <= 25
    return judged("about 21 users, KV cache", answer.brief, unless(right, "another answer"))


@case("HAProxy: maxconn 6 and a queue of 20 ms (503)")
def haproxy_queue_is_full(folder: Path) -> Judged:
    with (
        small_server() as server,
        haproxy([server], defaults="timeout queue 20ms", server_options="maxconn 6") as url,
    ):
        metrics = f"{server}/metrics"
        user_load(folder, url)(**SHORT_TRAFFIC, levels="3,6,9,12", level_s="8", metrics_url=metrics)
    answer = analyse_run(folder)
    model = answer.model
    return judged(
        "6 to 9 users, errors (503)",
        answer.brief,
        unless(model.get("binding") == "errors" and 5 <= model["estimate_x"] <= 9, "not 5 to 9 by errors"),
        unless(answer.says("503"), "the status is not said"),
    )


@case("LiteLLM in front of the server")
def litellm_in_front(folder: Path) -> Judged:
    with small_server() as server, litellm(server, model="Qwen3-1.7B") as url:
        key = {"LOADTEST_API_KEY": MASTER_KEY}
        metrics = f"{server}/metrics"
        run = user_load(folder, url, environment=key)(
            **TRAFFIC, levels="2,4", level_s="8", metrics_url=metrics
        )
    rows = run.rows() if run.code == 0 else []
    return judged(
        "works; the context is known",
        f"exit {run.code}, {len(rows)} rows, {errors_of(rows) or 'all ok'}",
        unless(len(rows) > 20 and not errors_of(rows), "failures"),
        unless(bool(rows) and bool(run.info["server"]["max_model_len"]), "the context is not known"),
    )


@case("nginx: proxy_read_timeout 1s cuts streams that wait for a slot")
def nginx_cuts_idle_streams(folder: Path) -> Judged:
    changes = {**TRAFFIC, "levels": "2,4,16", "level_s": "9", "prompt_tokens": "200"}
    location = f"{STREAMING} proxy_read_timeout 1s;"
    with simulator("--max-num-seqs", "2") as server, nginx(server, location=location) as url:
        run = user_load(folder, url)(**changes, metrics_url=f"{server}/metrics")
    answer = analyse_run(folder)
    failed = errors_of(run.rows())
    return judged(
        "errors from where requests wait for one of the two slots, named",
        f"{answer.brief}; {failed}",
        unless(sum(failed.values()) > 5, "too few failures to tell"),
        unless(answer.model.get("binding") in ("errors", "max_num_seqs", None), "another wall"),
        unless(any(map(answer.says, ("504", "truncated", "cut off"))), "the failures are not named"),
        "errors" in answer.no_wall and "errors are said to be no wall",
        answer.says("Little's law") and "Little's law is blamed",
    )


@case("LiteLLM tries again when the server answers 500", tested=False)
def litellm_tries_again(folder: Path) -> Judged:
    with (
        small_server() as server,
        gateway(server, error_share=0.2) as shaky,
        litellm(
            shaky, model="Qwen3-1.7B", settings="router_settings: {num_retries: 4, retry_after: 0}"
        ) as url,
    ):
        run = user_load(folder, url, environment={"LOADTEST_API_KEY": MASTER_KEY})(
            **TRAFFIC, levels="2,4", level_s="6", metrics_url=f"{server}/metrics"
        )
    rows = run.rows() if run.code == 0 else []
    failed = sum(errors_of(rows).values())
    return judged(
        "hardly any failure reaches the users",
        f"exit {run.code}, {len(rows)} rows, {errors_of(rows) or 'all ok'}",
        unless(len(rows) > 20, "too few rows"),
        unless(failed <= 0.05 * len(rows), "failures"),
    )


@case("LiteLLM's own limit of 60 requests a minute (429)")
def litellm_limits_requests(folder: Path) -> Judged:
    enforced = "router_settings: {optional_pre_call_checks: [enforce_model_rate_limits], num_retries: 0}"
    with (
        small_server() as server,
        litellm(server, model="Qwen3-1.7B", limits="rpm: 60", settings=enforced) as url,
    ):
        run = user_load(folder, url, environment={"LOADTEST_API_KEY": MASTER_KEY})(
            **TRAFFIC, levels="1,2,4", level_s="6", metrics_url=f"{server}/metrics"
        )
    answer, refused = analyse_run(folder), 0
    if run.code in (0, 1):
        refused = sum(row["http_status"] == 429 for row in run.rows())
    return judged(
        "429 is named, with its words; no wall of latency",
        f"exit {run.code}; {answer.brief}; {refused} got 429",
        unless(refused > 3, "too few refusals to tell"),
        unless(answer.says("429") or "429" in run.said, "429 is not named"),
        answer.model.get("binding") in ("ttft", "tpot", "kv_cache") and "another wall",
        "Traceback" in run.said and "a traceback",
    )


@case("llama.cpp with four slots of 1,024 tokens")
def llama_cpp_serves(folder: Path) -> Judged:
    objective = {"LOADTEST_SLO_TTFT_P95_S": "0.3", "LOADTEST_SLO_TPOT_P95_S": "1"}
    with llama_cpp(slots=4, context=1024) as url:
        run = user_load(folder, url, environment=objective)(
            levels="2,4,8", level_s="12", settle_s="2", prompt_tokens="40-80", output_tokens="80-160"
        )
    answer, rows = analyse_run(folder), run.rows() if run.code == 0 else []
    model = answer.model
    return judged(
        "4 users or a little more, TTFT: the fifth waits for a slot",
        f"exit {run.code}, {len(rows)} rows, {errors_of(rows) or 'all ok'}; {answer.brief}",
        unless(len(rows) > 50 and not errors_of(rows), "failures"),
        unless(bool(rows) and run.info["server"]["max_model_len"] == 1024, "another context than a slot's"),
        unless("metrics of llama.cpp" in run.said, "whose metrics were found is not said"),
        unless(
            model.get("binding") == "ttft" and 3.5 <= model["estimate_x"] <= 8, "not by the wait for a slot"
        ),
        any(wall in answer.no_wall for wall in ("KV cache", "max_num_seqs")) and "what nobody saw is no wall",
    )
