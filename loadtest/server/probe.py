"""Sends requests before the load, to measure how the server counts tokens, to find its context length and to
warm it up. Writes no rows; knows no Locust."""

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator

import aiohttp
import msgspec

from loadtest.client.body import encode_chat_body
from loadtest.client.stream import Exchange, StreamRequest, stream_chat
from loadtest.client.target import Target
from loadtest.errors import InputError
from loadtest.record import Outcome, RequestRecord, may_be_overload
from loadtest.server.endpoints import REMINDER_S, LoadingWait, is_loading, key_advice
from loadtest.settings import Settings
from loadtest.workload.prompts import PromptScale, probe_text

logger = logging.getLogger(__name__)

FIRST_ANSWER_LIMIT_S = 600.0
"""Time limit of a test request, in seconds: a server may load a model or compile when it is first used."""
RETRY_PAUSES_S = (1.0, 2.0, 5.0)
"""Pauses before a test request is sent again, after a failure that load or a gateway can cause."""
MAX_RETRY_AFTER_S = 30.0
WARM_UPS = 4
PROBE_TOKENS = 8
DEFAULT_CONTEXT = 4096
"""Tokens that a context is taken to have while nobody has said how many."""
ENGINES_WITH_CACHE_SALT = frozenset({"vllm", "sglang", "seatcount-simulator"})
"""Engines whose prefix cache tells prompts with another `cache_salt` apart. Other servers may refuse a field
that they do not know, or accept it without effect."""
_REQUEST_ID = "seatcount-preflight"
"""Name of all test requests in the server's log."""
_TOO_MANY_TOKENS = 10_000_000
"""Longer than any context: a server that checks `max_tokens` names its context in the refusal."""
_CONTEXT_WORDS = re.compile(
    r"(?:context[ _](?:length|size|window)|max_model_len|maximum model length|n_ctx)\D{0,30}?(\d[\d,]*)",
    re.IGNORECASE,
)
_NO_CHAT = re.compile(
    r"embedding|rerank|does not support (?:chat|completions?|generat)|pooling", re.IGNORECASE
)


class ContextExceededError(InputError):
    """A test request was refused because it does not fit into the context."""

    def __init__(self, message: str, *, context: int) -> None:
        super().__init__(message)
        self.context = context
        """The context length, in tokens, that the refusal names."""


class Prober:
    """Sends test requests to one model."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        target: Target,
        settings: Settings,
        *,
        model: str,
        listed: list[str],
        nonce: str,
    ) -> None:
        """nonce: text that makes this run's prompts differ from those of every other run. listed: names in
        /v1/models, which an error names."""
        self._session = session
        self._target = target
        self._settings = settings
        self._model = model
        self._listed = listed
        self._nonce = nonce
        self.answered: list[RequestRecord] = []
        """Records of the test requests that were answered."""

    async def measure_context_and_scale(
        self, context: int | None
    ) -> tuple[int | None, PromptScale, RequestRecord]:
        """Does what `measure_prompt_scale` does, with the context that a refusal names if this is shorter
        than the one that is known: a gateway can have a limit of its own. Returns the context too."""
        try:
            return context, *await self.measure_prompt_scale(context)
        except ContextExceededError as refusal:
            if context is not None and refusal.context >= context:
                raise
            return refusal.context, *await self.measure_prompt_scale(refusal.context)

    async def measure_prompt_scale(self, context: int | None) -> tuple[PromptScale, RequestRecord]:
        """Measures with two prompts how many tokens the chat template adds to a prompt and how many tokens a
        word takes. context: the context length in tokens, if it is known.

        Returns two values: the measured scale, and the record of the first request. If the server sends no
        usage, the scale is a guess: 0 tokens for the template and 1.3 tokens per word. Raises InputError if a
        request fails or the longer prompt does not count more tokens.
        """
        room = (context or DEFAULT_CONTEXT) - PROBE_TOKENS
        long = max(24, min(400, room // 4))
        short = long // 4
        first = await self._ask(probe_text(nonce=self._nonce, words=short))
        second = await self._ask(probe_text(nonce=self._nonce, words=long))
        if first.prompt_tokens is None or second.prompt_tokens is None:
            return PromptScale(overhead_tokens=0, tokens_per_word=1.3), first
        per_word = (second.prompt_tokens - first.prompt_tokens) / (long - short)
        if per_word <= 0:
            raise InputError("usage.prompt_tokens does not grow with the prompt: prompts cannot be sized.")
        return PromptScale(
            overhead_tokens=first.prompt_tokens - per_word * short, tokens_per_word=per_word
        ), first

    async def wake(self) -> None:
        """Waits until the server answers a short request. Raises InputError if it does not."""
        await self._ask(probe_text(nonce=self._nonce, words=2))

    async def find_context(self) -> int | None:
        """Asks for more tokens than any context has. Returns the context length in tokens that the server
        states in its refusal; None if it does not. The connection is closed as soon as an answer begins,
        which ends the request."""
        endless = self._settings.model_copy(update={"ignore_eos": False})
        body = encode_chat_body(
            endless,
            model=self._model,
            messages=[{"role": "user", "content": probe_text(nonce=self._nonce, words=2)}],
            max_tokens=_TOO_MANY_TOKENS,
        )
        url = f"{self._target.api_url}/chat/completions"
        with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with asyncio.timeout(FIRST_ANSWER_LIMIT_S):
                response = await self._session.post(
                    url, data=body, headers={"X-Request-Id": _REQUEST_ID}, allow_redirects=False
                )
                try:
                    if response.status in (400, 413, 422):
                        return context_in((await response.content.read(8192)).decode("utf-8", "replace"))
                finally:
                    response.close()
        return None

    async def accepts_cache_salt(self, engine: object) -> bool:
        """Whether the server keeps prompts apart by `cache_salt`: its engine (the owner that /v1/models
        names) is known to, and it answers a test request that has one. The old engine of vLLM refuses it,
        versions before 0.9 ignore it."""
        if engine not in ENGINES_WITH_CACHE_SALT:
            return False
        text = probe_text(nonce=f"{self._nonce}s", words=24)
        exchange = await self._send(text, max_tokens=PROBE_TOKENS, cache_salt=self._nonce)
        if _is_failure(exchange.record):
            return False
        self.answered.append(exchange.record)
        return True

    async def warm_up(self) -> list[str]:
        """Sends a few requests together, so that the first recorded requests do not wait for compilation or
        for caches to be filled. Returns a warning if some failed."""
        texts = [probe_text(nonce=f"{self._nonce}w{i}", words=32 + i) for i in range(WARM_UPS)]
        exchanges = await asyncio.gather(*(self._send(text, max_tokens=16) for text in texts))
        records = [exchange.record for exchange in exchanges]
        failed = [record for record in records if _is_failure(record)]
        self.answered += [record for record in records if not _is_failure(record)]
        if not failed:
            return []
        return [
            f"{len(failed)} of {WARM_UPS} test requests sent together failed ({self._failure(failed[0])}), "
            "while single ones were answered."
        ]

    async def _ask(self, text: str) -> RequestRecord:
        """Sends one test request, waits while the server loads its model, and tries again after failures that
        may pass. Returns the record of the answer. Raises InputError if there is none."""
        loading = LoadingWait()
        pauses = iter(RETRY_PAUSES_S)
        while True:
            async with _reminders():
                exchange = await self._send(text, max_tokens=PROBE_TOKENS)
            record = exchange.record
            if not _is_failure(record):
                self.answered.append(record)
                return record
            if is_loading(record.http_status, record.error or ""):
                await loading.once_more()
                continue
            pause = next(pauses, None) if _may_pass(record) else None
            if pause is None:
                reason = await self._reason(record, text)
                context = context_in(record.error or "") if record.http_status in (400, 422) else None
                raise InputError(reason) if context is None else ContextExceededError(reason, context=context)
            await asyncio.sleep(max(pause, min(exchange.retry_after_s or 0.0, MAX_RETRY_AFTER_S)))

    async def _send(
        self,
        text: str,
        *,
        max_tokens: int,
        settings: Settings | None = None,
        cache_salt: str | None = None,
    ) -> Exchange:
        body = encode_chat_body(
            settings or self._settings,
            model=self._model,
            messages=[{"role": "user", "content": text}],
            max_tokens=max_tokens,
            cache_salt=cache_salt,
        )
        request = StreamRequest(
            url=f"{self._target.api_url}/chat/completions",
            body=body,
            request_id=_REQUEST_ID,
            model=self._model,
            scenario="preflight",
            worker="",
            user=0,
            turn=0,
            level_users=None,
            max_tokens=max_tokens,
            timeout_s=FIRST_ANSWER_LIMIT_S,
        )
        exchange = await stream_chat(self._session, request)
        if exchange.cancelled is not None:
            raise exchange.cancelled
        error = exchange.record.error and self._target.without_secrets(exchange.record.error)
        return exchange._replace(record=msgspec.structs.replace(exchange.record, error=error))

    async def _reason(self, record: RequestRecord, text: str) -> str:
        """Returns the sentence for a test request that failed: what was asked, the server's own words, and
        what to do."""
        status, words, failure = record.http_status, record.error or "", self._failure(record)
        if status in (401, 403):
            return f"A test request was answered {status}: {key_advice(self._target)}."
        if status in (400, 422):
            if (context := context_in(words)) is not None:
                return (
                    f"A test request does not fit into the model's context of {context} tokens ({failure})."
                )
            if await self._answers_without_ignore_eos(text):
                return (
                    f"The server refuses ignore_eos ({failure}): add --ignore-eos false. Answers then end "
                    "where the model ends them, and --output-tokens only limits them."
                )
        if status == 404 and "model" in words.lower():
            listing = ", ".join(self._listed) or "none"
            return f"The server does not serve '{self._model}' ({failure}); --model can be: {listing}."
        if status in (404, 405, 501) or (status in (400, 422) and _NO_CHAT.search(words)):
            return (
                f"{self._target.api_url}/chat/completions has no answers of '{self._model}' ({failure}): the "
                "load test needs chat completions, which a server of embeddings or reranking does not have."
            )
        return f"A streamed test request failed ({failure})."

    async def _answers_without_ignore_eos(self, text: str) -> bool:
        if not self._settings.ignore_eos:
            return False
        settings = self._settings.model_copy(update={"ignore_eos": False})
        exchange = await self._send(text, max_tokens=PROBE_TOKENS, settings=settings)
        return not _is_failure(exchange.record)

    def _failure(self, record: RequestRecord) -> str:
        kind = f"HTTP {record.http_status}" if record.outcome is Outcome.HTTP_ERROR else record.outcome.value
        return f"{kind}: {record.error.rstrip('.')}" if record.error else kind


def context_in(words: str) -> int | None:
    """Returns the context length, in tokens, that a server's refusal names; None if it names none."""
    lengths = (int(found.replace(",", "")) for found in _CONTEXT_WORDS.findall(words))
    return next((length for length in lengths if 0 < length < _TOO_MANY_TOKENS), None)


def _is_failure(record: RequestRecord) -> bool:
    return record.outcome not in (Outcome.OK, Outcome.EMPTY)


def _may_pass(record: RequestRecord) -> bool:
    """Whether a failure may be over in a moment. A timeout is not waited for again: its limit is long."""
    return record.outcome is not Outcome.TIMEOUT and may_be_overload(record.outcome, record.http_status)


@contextlib.asynccontextmanager
async def _reminders() -> AsyncIterator[None]:
    """Says now and then, while the body runs, that an answer is waited for."""

    async def remind() -> None:
        waited = 0.0
        while True:
            await asyncio.sleep(REMINDER_S)
            waited += REMINDER_S
            logger.info(
                "No answer for %.0f s; the server may be loading or compiling: waiting, at most %.0f s ...",
                waited,
                FIRST_ANSWER_LIMIT_S,
            )

    reminder = asyncio.create_task(remind())
    try:
        yield
    finally:
        reminder.cancel()
