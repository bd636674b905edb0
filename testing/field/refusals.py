"""Requests that are refused, or answered emptily, at any load: for what they ask, not for how many ask."""

import json
from pathlib import Path
from typing import Any

from testing.field.case import Judged, case, judged, unless
from testing.field.commands import Analysed, analyse_run, user_load, wait_for_level
from testing.field.deployment import (
    SWEEP,
    TRAFFIC,
    errors_of,
    is_memory_wall,
    memory_wall_right,
    refused_at_start,
    small_server,
)
from testing.load_tests import Finished
from testing.processes import change_gateway, gateway, simulator


def _stands_on_the_rest(run: Finished, answer: Analysed, *, outcome: str, words: tuple[str, ...]) -> Judged:
    """Judges a sweep whose failures are named, and whose levels stand on the other requests."""
    failed = errors_of(run.rows()).get(outcome, 0)
    return judged(
        f"{memory_wall_right()}; {failed} failures named",
        answer.brief,
        unless(failed > 5, "too few failures to tell"),
        unless(is_memory_wall(answer), "not the memory wall"),
        *(unless(answer.says(word), f"'{word}' is not said") for word in words),
        answer.says("Little's law") and "Little's law is blamed",
    )


@case("one request in ten is refused with 400")
def one_in_ten_refused(folder: Path) -> Judged:
    with small_server() as server, gateway(server, refuse_share=0.1, words="Content policy violated") as url:
        run = user_load(folder, url)(**SWEEP)
    return _stands_on_the_rest(
        run, analyse_run(folder), outcome="http_error", words=("400", "Content policy violated")
    )


@case("one answer in five has tokens but no text")
def answers_without_text(folder: Path) -> Judged:
    with small_server() as server, gateway(server, empty_share=0.2) as url:
        run = user_load(folder, url)(**SWEEP)
    answer = analyse_run(folder)
    empty = errors_of(run.rows()).get("empty", 0)
    found = _stands_on_the_rest(run, answer, outcome="empty", words=("empty",))
    table = [line.split() for line in run.said.splitlines() if line.strip().startswith("Aggregated")]
    failed = next((int(words[2].partition("(")[0]) for words in table if len(words) > 3), -1)
    total = sum(level["errors"] for level in answer.model.get("levels", []))
    return judged(
        f"{found.right}; Locust and report count them",
        f"{found.ours}; {empty} rows, Locust {failed}, report {total}",
        unless(found.ok, "see above"),
        unless(failed == empty, "Locust counts others"),
        unless(0 < total <= empty, "the report counts others"),
    )


@case("one request in thirty gets 500, at any load")
def errors_at_any_load(folder: Path) -> Judged:
    with small_server() as server, gateway(server, error_share=0.04, words="Worker died") as url:
        run = user_load(folder, url)(**{**SWEEP, "level_s": "7"})
    return _stands_on_the_rest(run, analyse_run(folder), outcome="http_error", words=("500", "Worker died"))


@case("one connection in twenty is reset, at any load")
def resets_at_any_load(folder: Path) -> Judged:
    with small_server() as server, gateway(server, reset_share=0.06) as url:
        run = user_load(folder, url)(**SWEEP)
    answer, rows = analyse_run(folder), run.rows()
    replaced, failed = sum(row["replaced_connections"] for row in rows), errors_of(rows)
    return judged(
        f"{memory_wall_right()}; reused connections are replaced once, the others named",
        f"{answer.brief}; {replaced} replaced, {failed or 'none failed'}",
        unless(replaced > 5, "too few replaced"),
        unless(is_memory_wall(answer), "not the memory wall"),
        unless(not failed or answer.says("disconnected"), "failures are not named"),
    )


@case("the longest prompts are longer than the context, and only a refusal says how long that is")
def prompts_too_long(folder: Path) -> Judged:
    changes = {**SWEEP, "levels": "2,4", "level_s": "12", "prompt_tokens": "lognormal:120,0.7"}
    pages = _pages(max_model_len=None)
    with simulator() as server, gateway(server, max_prompt_words=200, pages=pages) as url:
        run = user_load(folder, url)(**changes)
    answer = analyse_run(folder)
    refused = errors_of(run.rows()).get("http_error", 0)
    model = answer.model
    return judged(
        "no request is refused, or those are named with the server's words and are no wall",
        f"{refused} refused; {answer.brief}",
        unless(bool(model) and not model["refused"], "no answer"),
        bool(model) and model["binding"] == "errors" and "errors are the wall",
        unless(not refused or answer.says("400", "maximum context length is 200"), "the words are not said"),
    )


def _pages(**card: Any) -> str:
    base = {"id": "Qwen3-1.7B", "object": "model", "owned_by": "vllm"}
    return json.dumps({"/v1/models": {"object": "list", "data": [{**base, **card}]}})


_CLIPPED = {**TRAFFIC, "levels": "4", "level_s": "4", "prompt_tokens": "lognormal:110,0.7"}
"""Traffic of which many a prompt must be clipped to a context of 160 tokens."""


def _context_is_kept(folder: Path, pages: dict[str, Any], *flags: str) -> Judged:
    """Judges a run whose prompts must be clipped to a context of 160 tokens, which only `pages` state."""
    with (
        simulator("--max-model-len", "160") as server,
        gateway(server, pages=json.dumps(pages), any_model=True) as url,
    ):
        run = user_load(folder, url)(
            *flags, **TRAFFIC, levels="4", level_s="4", prompt_tokens="lognormal:110,0.7"
        )
    rows = run.rows() if run.code == 0 else []
    refused = sum(row["http_status"] == 400 for row in rows)
    return judged(
        "prompts fit: none of 400",
        f"{refused} of {len(rows)} got 400",
        unless(run.code == 0, f"exit {run.code}: {run.said.strip().splitlines()[-1]}"),
        refused > 0 and "prompts are too long",
    )


@case("a LoRA adapter, whose context only its parent states")
def adapter_of_a_model(folder: Path) -> Judged:
    cards = [
        {"id": "base", "object": "model", "owned_by": "vllm", "max_model_len": 160, "parent": None},
        {"id": "adapter", "object": "model", "owned_by": "vllm", "max_model_len": None, "parent": "base"},
    ]
    return _context_is_kept(folder, {"/v1/models": {"object": "list", "data": cards}}, "--model", "adapter")


@case("llama.cpp states its context as meta.n_ctx")
def context_as_llama_cpp_states_it(folder: Path) -> Judged:
    card = {
        "id": "tiny",
        "object": "model",
        "owned_by": "llamacpp",
        "meta": {"n_ctx": 160, "n_ctx_train": 4096},
    }
    return _context_is_kept(folder, {"/v1/models": {"object": "list", "data": [card]}})


@case("LiteLLM states its context in /model/info")
def context_as_litellm_states_it(folder: Path) -> Judged:
    card = {"id": "chat", "object": "model", "owned_by": "openai"}
    info = {"model_name": "chat", "model_info": {"max_input_tokens": 140, "max_tokens": 160}}
    pages = {
        "/v1/models": {"object": "list", "data": [card]},
        "/model/info": {"data": [info]},
        "/v1/model/info": {"data": [info]},
    }
    return _context_is_kept(folder, pages)


@case("only the words of a 400 state the context")
def context_in_the_refusal(folder: Path) -> Judged:
    return _context_is_kept(folder, json.loads(_pages(max_model_len=None)))


@case("a gateway refuses ignore_eos with 422")
def ignore_eos_refused(folder: Path) -> Judged:
    with small_server() as server, gateway(server, refuse_ignore_eos=True) as url:
        run = user_load(folder, url)(levels="1")
        allowed = user_load(folder / "allowed", url)(levels="1", ignore_eos="false")
    found = refused_at_start(run, "--ignore-eos false")
    return judged(
        found.right,
        found.ours,
        unless(found.ok, "see above"),
        unless(allowed.code == 0, "--ignore-eos false does not help"),
    )


@case("an embedding server: /v1/chat/completions is 404")
def embedding_server(folder: Path) -> Judged:
    with small_server() as server, gateway(server, status=404, words="Not Found") as url:
        return refused_at_start(user_load(folder, url)(levels="1"), "404", "chat")


@case("--host ends in /v1/completions")
def host_of_an_endpoint(folder: Path) -> Judged:
    with small_server() as server:
        run = user_load(folder, f"{server}/v1/completions")(levels="1")
        chats = user_load(folder / "chats", f"{server}/v1/chat/completions")(levels="1")
    works = run.code == 0 and chats.code == 0
    return judged(
        "works, or a sentence that says what --host takes",
        f"exit {run.code} and {chats.code}",
        unless(works or "--host" in run.said, run.said.strip().splitlines()[-1]),
    )


@case("two answers a request are asked for (n: 2)")
def two_answers_a_request(folder: Path) -> Judged:
    with small_server() as server:
        return refused_at_start(
            user_load(folder, server)("--extra-body", '{"n": 2}', levels="1"), "--extra-body"
        )


@case("--model names what /v1/models does not list (it lists 'unknown')")
def unlisted_model(folder: Path) -> Judged:
    with small_server() as server, gateway(server, model_name="unknown") as url:
        run = user_load(folder, url)("--model", "Qwen3-1.7B", levels="1,2")
    ok = run.code == 0 and all(row["model"] == "Qwen3-1.7B" for row in run.rows())
    return judged(
        "taken as said, with a warning",
        f"exit {run.code}",
        unless(ok, run.said.strip().splitlines()[-1]),
        unless("unknown" in run.said, "no warning"),
    )


@case("no path /v1/models at all, and a model that is named")
def no_list_of_models(folder: Path) -> Judged:
    with small_server() as server, gateway(server, pages='{"/v1/models": null}') as url:
        run = user_load(folder, url)("--model", "Qwen3-1.7B", levels="1,2")
    ok = run.code == 0 and len(run.rows()) > 3
    return judged("taken as said", f"exit {run.code}", unless(ok, run.said.strip().splitlines()[-1]))


@case("the key expires in the second level: 401 from then on")
def key_expires(folder: Path) -> Judged:
    with small_server() as server, gateway(server, words="The key has expired.") as url:

        def expire(run: Finished) -> None:
            wait_for_level(run, 2)
            change_gateway(url, status=401)

        run = user_load(folder, url, meanwhile=expire)(**SWEEP)
    answer = analyse_run(folder)
    model = answer.model
    return judged(
        "the run ends, not with 0, and says 401; the level before stands",
        f"exit {run.code}; {answer.brief}",
        unless(run.code != 0, "exit code 0"),
        unless("401" in run.said and "key has expired" in run.said, "the load test does not say why"),
        unless(answer.says("401", "key has expired"), "the report does not say why"),
        bool(model) and model["binding"] == "errors" and "errors are the wall",
        unless(
            bool(model) and bool(model["levels"]) and model["levels"][0]["trusted"], "level 4 not trusted"
        ),
    )


@case("a login page instead of an answer (a redirect, then HTML with 200)")
def login_page(folder: Path) -> Judged:
    with small_server() as server, gateway(server, login=True) as url:
        return refused_at_start(user_load(folder, url)(levels="1"), "302", "/login")


@case("a host name that nobody knows")
def unknown_name(folder: Path) -> Judged:
    return refused_at_start(user_load(folder, "http://nothing.invalid:8000")(levels="1"), "name")
