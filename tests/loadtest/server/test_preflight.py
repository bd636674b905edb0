"""What is found out before the load, of servers that say of themselves what real ones say, over real
sockets."""

import asyncio
import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest

from loadtest.client.target import make_target
from loadtest.client.transport import open_session
from loadtest.errors import InputError
from loadtest.server.endpoints import list_models
from loadtest.server.preflight import Preflight, inspect_server, preflight_summary
from loadtest.settings import Settings
from testing.processes import free_port
from testing.servers.imitation import ImitatedAnswer, Imitation, imitated_server
from testing.servers.wire import (
    ANSWER_EVENTS,
    LAST_CHUNK,
    STREAM_HEAD,
    http_chunk,
    wire_server,
)


def inspect(imitation: Imitation, **settings: Any) -> Preflight:
    async def run() -> Preflight:
        async with imitated_server(imitation) as url:
            return await inspect_at(url, **settings)

    return asyncio.run(run())


async def inspect_at(url: str, **settings: Any) -> Preflight:
    chosen = Settings(**settings)
    preflight, scraper = await inspect_server(make_target(url, chosen), chosen, nonce="n")
    await scraper.close()
    return preflight


def refused(imitation: Imitation, **settings: Any) -> str:
    with pytest.raises(InputError) as caught:
        inspect(imitation, **settings)
    return str(caught.value)


def test_a_model_that_is_not_listed_is_taken_as_said_with_a_warning() -> None:
    for models in ([{"id": "unknown"}], [], (404, "no such page"), (200, "not a list")):
        found = inspect(Imitation(models=models), model="my-model")
        assert found.model == "my-model"
        (warning,) = [warning for warning in found.warnings if "does not list" in warning]
        assert "'my-model'" in warning


def test_without_a_listed_model_one_must_be_named() -> None:
    assert "name the one to test with --model" in refused(Imitation(models=[]))
    assert "choose one with --model: a, b" in refused(Imitation(models=[{"id": "a"}, {"id": "b"}]))


def test_a_model_that_is_not_served_is_refused_with_the_names_that_are() -> None:
    unknown = (404, {"error": {"message": "The model `x` does not exist.", "code": 404}})
    said = refused(Imitation(refusal=lambda _: unknown), model="x")
    assert "does not serve 'x'" in said
    assert "--model can be: m" in said


def test_an_adapters_context_is_that_of_its_base_model() -> None:
    adapter = {"id": "lora", "root": "/adapters/lora", "parent": "base", "max_model_len": None}
    models = [{"id": "base", "max_model_len": 2048}, adapter]
    assert inspect(Imitation(models=models), model="lora").server.max_model_len == 2048


@pytest.mark.parametrize(
    ("meta", "pages", "context"),
    [
        ({"n_ctx": 512, "n_ctx_train": 40960}, {}, 512),
        ({"n_ctx_train": 40960}, {"/props": {"default_generation_settings": {"n_ctx": 1024}}}, 1024),
        ({"n_ctx_train": 40960}, {}, 40960),
    ],
)
def test_llama_cpps_context_is_what_a_request_may_use(
    meta: dict[str, int], pages: dict[str, object], context: int
) -> None:
    found = inspect(
        Imitation(models=[{"id": "m", "meta": meta}], pages=pages), prompt_tokens="40", output_tokens="8"
    )
    assert found.server.max_model_len == context


def test_litellms_context_is_in_its_model_info() -> None:
    deployments = [
        {"model_name": "other", "model_info": {"max_input_tokens": 1}},
        {"model_name": "m", "model_info": {"max_input_tokens": 8192, "max_tokens": 100}},
    ]
    found = inspect(Imitation(pages={"/v1/model/info": {"data": deployments}}))
    assert found.server.max_model_len == 8192


@pytest.mark.parametrize(
    "words",
    [
        "This model's maximum context length is 4096 tokens. However, you requested 10000000 tokens.",
        "max_tokens=10000000 cannot be greater than max_model_len=4096. Please request fewer output tokens.",
        "the request exceeds the available context size (4,096 tokens), try increasing it",
        "Requested token count exceeds the model's maximum context length of 4096 tokens.",
    ],
)
def test_a_context_that_nobody_lists_is_read_from_the_refusal_of_a_request_that_is_too_long(
    words: str,
) -> None:
    def refuse(body: dict[str, Any]) -> ImitatedAnswer | None:
        return (400, {"error": {"message": words}}) if body["max_tokens"] > 4096 else None

    imitation = Imitation(refusal=refuse)
    assert inspect(imitation).server.max_model_len == 4096
    assert all("ignore_eos" not in body for body in imitation.bodies if body["max_tokens"] > 4096)


def test_a_context_that_cannot_be_found_out_stays_unknown() -> None:
    found = inspect(Imitation())
    assert found.server.max_model_len is None
    assert any(
        "context unknown" in line for line in preflight_summary(found, make_target("http://h", Settings()))
    )


def test_a_server_that_refuses_ignore_eos_is_named_with_the_flag_to_set() -> None:
    def refuse(body: dict[str, Any]) -> ImitatedAnswer | None:
        return (422, {"detail": "Extra inputs are not permitted"}) if "ignore_eos" in body else None

    said = refused(Imitation(refusal=refuse))
    assert "refuses ignore_eos" in said
    assert "Extra inputs are not permitted" in said
    assert "--ignore-eos false" in said
    assert inspect(Imitation(refusal=refuse), ignore_eos=False).model == "m"


@pytest.mark.parametrize(
    "answer",
    [
        (404, {"detail": "Not Found"}),
        (400, {"error": {"message": "The model does not support Chat Completions API"}}),
        (
            501,
            {"error": {"message": "This server has no completions: restart it without --embeddings"}},
        ),
    ],
)
def test_a_server_of_embeddings_is_told_what_the_load_test_needs(answer: ImitatedAnswer) -> None:
    said = refused(Imitation(refusal=lambda _: answer))
    assert "needs chat completions" in said
    assert "embeddings" in said


LOADING = (503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}})


def first_times(count: int, answer: ImitatedAnswer) -> Callable[[dict[str, Any]], ImitatedAnswer | None]:
    turn = itertools.count()
    return lambda _: answer if next(turn) < count else None


def test_a_model_that_is_loaded_on_first_use_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        assert inspect(Imitation(refusal=first_times(2, LOADING))).model == "m"
    assert "The server is loading its model: waiting" in caplog.text


def test_a_server_that_is_still_loading_is_waited_for_up_to_a_limit() -> None:
    async def list_in(seconds: float) -> None:
        imitation = Imitation(models=LOADING)
        async with imitated_server(imitation) as url:
            async with open_session(headers={}, tls=None) as session:
                target = make_target(url, Settings())
                with pytest.raises(InputError, match="still loading its model after"):
                    await list_models(session, target, needed=True, limit_s=seconds)
            imitation.models = [{"id": "late"}]
            assert (await inspect_at(url)).model == "late"

    asyncio.run(list_in(0.3))


def test_a_refusal_that_passes_does_not_end_the_inspection() -> None:
    assert inspect(Imitation(refusal=first_times(2, (429, {"error": {"message": "slow down"}})))).model == "m"


def test_a_server_that_sheds_the_requests_sent_together_is_still_tested() -> None:
    turn = itertools.count()

    def refuse(body: dict[str, Any]) -> ImitatedAnswer | None:
        together = body["max_tokens"] == 16
        return (503, {"error": {"message": "busy"}}) if together and next(turn) > 0 else None

    found = inspect(Imitation(models=[{"id": "m", "max_model_len": 4096}], refusal=refuse))
    (warning,) = [warning for warning in found.warnings if "sent together failed" in warning]
    assert warning.startswith("3 of 4 test requests")
    assert "HTTP 503: busy" in warning


def test_a_gateway_with_a_shorter_context_than_the_models_is_learned_from_its_refusal() -> None:
    def refuse(body: dict[str, Any]) -> ImitatedAnswer | None:
        tokens = len(str(body["messages"][0]["content"]).split())
        words = f"This model's maximum context length is 200 tokens, and your request has {tokens}."
        return (400, {"error": {"message": words}}) if tokens > 200 else None

    imitation = Imitation(models=[{"id": "m", "max_model_len": 4096}], refusal=refuse)
    assert inspect(imitation, prompt_tokens="40", output_tokens="8").server.max_model_len == 200


@pytest.mark.parametrize(
    ("first_bytes", "said"),
    [
        (bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)), "speaks HTTP/2 only"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak HTTP"),
    ],
)
def test_a_server_that_answers_in_another_protocol_is_named(first_bytes: bytes, said: str) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(first_bytes)
        await reader.read(1000)
        await writer.drain()

    async def run() -> str:
        async with wire_server(handle) as url:
            with pytest.raises(InputError) as caught:
                await inspect_at(url.removesuffix("/v1/chat/completions"))
        return str(caught.value)

    assert said in asyncio.run(run())


def test_a_server_that_cannot_be_reached_is_one_sentence() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(InputError, match=rf"^{re.escape(url)} cannot be reached \(.*refused.*\)\.$"):
        asyncio.run(inspect_at(url))


def test_a_server_that_closes_each_connection_after_its_stream_is_inspected() -> None:
    """llama.cpp announces keep-alive and closes at once."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET /v1/models "):
            body = b'{"data": [{"id": "m", "max_model_len": 512}]}'
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        elif head.startswith(b"GET"):
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        else:
            length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            assert length
            await reader.readexactly(int(length[1]))
            prompts.append(len(prompts))
            events = [event.replace(b'"prompt_tokens": 7', b'"prompt_tokens": %d' % (7 + 20 * len(prompts)))
                      for event in ANSWER_EVENTS]  # fmt: skip
            writer.write(STREAM_HEAD + b"".join(map(http_chunk, events)) + LAST_CHUNK)
        await writer.drain()
        writer.close()

    prompts: list[int] = []

    async def run() -> Preflight:
        async with wire_server(handle) as url:
            return await inspect_at(
                url.removesuffix("/v1/chat/completions"), prompt_tokens="40", output_tokens="8"
            )

    assert asyncio.run(run()).server.max_model_len == 512


@pytest.mark.parametrize("body", [{"n": 2}, {"best_of": 3}, {"stream": False}])
def test_a_body_that_asks_for_other_answers_is_refused_in_a_sentence(body: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="--extra-body asks for"):
        Settings(extra_body=body)
    assert Settings(extra_body={"n": 1, "stream": True, "top_p": 0.9}).extra_body["n"] == 1


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/", "/v1/completions", "/v1/chat/completions/"])
def test_the_host_may_be_given_with_the_path_of_an_endpoint(path: str) -> None:
    for prefix in ("", "/llm/v1beta"):
        target = make_target(f"http://host:1{prefix}{path}", Settings())
        assert (target.shown, target.api_url) == (f"http://host:1{prefix}", f"http://host:1{prefix}/v1")


def test_a_key_in_openai_s_variable_is_offered_and_neither_sent_nor_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refusing = Imitation(models=(401, "who are you?"))
    assert "OPENAI_API_KEY" not in refused(refusing)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-meant-for-you")
    said = refused(refusing)
    assert 'LOADTEST_API_KEY="$OPENAI_API_KEY"' in said
    assert "sk-not" not in said
    assert "does not accept the key" in refused(refusing, api_key="another")
    assert "sk-not" not in str(make_target("http://host:1", Settings()).headers)
