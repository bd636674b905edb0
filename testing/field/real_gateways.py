"""nginx, HAProxy and LiteLLM in front of the embedded server."""

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
    small_server,
)
from testing.gateways.running import MASTER_KEY, haproxy, litellm, nginx

STREAMING = "proxy_buffering off; proxy_http_version 1.1; proxy_set_header Connection '';"
GZIP = "gzip on; gzip_proxied any; gzip_types *; gzip_min_length 1;"


@case("nginx with gzip and its default buffering, HTTP/1.0 to the server", long=True)
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


@case("nginx: limit_conn 6 (503)", long=True)
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


@case("nginx: limit_req 10 a second (429)", long=True)
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


@case("HAProxy without http-no-delay", long=True)
def haproxy_in_front(folder: Path) -> Judged:
    with small_server() as server, haproxy([server]) as url:
        run = user_load(folder, url)(**SWEEP)
    answer = analyse_run(folder)
    return judged(
        memory_wall_right(),
        f"{answer.brief}; {errors_of(run.rows()) or 'all ok'}",
        unless(is_memory_wall(answer), "not the memory wall"),
    )


@case("HAProxy, round robin over two replicas", long=True)
def haproxy_takes_turns(folder: Path) -> Judged:
    with small_server() as first, small_server() as second, haproxy([first, second]) as url:
        both = f"{first}/metrics,{second}/metrics"
        user_load(folder, url)(**{**SWEEP, "levels": "8,16,24"}, metrics_url=both)
    answer = analyse_run(folder)
    model = answer.model
    right = model.get("binding") == "kv_cache" and 17 <= model["estimate_x"] <= 25
    return judged("about 21 users, KV cache", answer.brief, unless(right, "another answer"))


@case("HAProxy: maxconn 6 and a queue of 20 ms (503)", long=True)
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
        unless(model.get("binding") == "errors" and 5 <= model["max_users"] <= 9, "not 5 to 9 by errors"),
        unless(answer.says("503"), "the status is not said"),
    )


@case("LiteLLM in front of the server", long=True)
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
