"""Reads chat completion requests and writes their answers in the format of vLLM 0.32, byte for byte.

Knows no socket and no clock. There is one model, one choice per request and no tools. Sampling parameters are
accepted without effect, except `seed`, `ignore_eos` and the limits of the length.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from loadtest.simulator.engine.requests import Request
from loadtest.simulator.text import ANSWER_WORDS, SimulatedAnswer, render_prompt

VLLM_VERSION = "0.32.0"
FINGERPRINT = f"vllm-{VLLM_VERSION}-seatcount"


class RefusalError(Exception):
    """Raised where vLLM would answer a request with an error. Holds vLLM's HTTP status and error body."""

    def __init__(self, status: int, message: str, *, kind: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": status}}


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionRequest:
    """The parts of a chat completion request that have an effect."""

    model: str
    prompt: list[str]
    """Tokens of the prompt."""
    max_tokens: int
    ignore_eos: bool
    seed: int
    thinking: bool
    stream: bool
    include_usage: bool
    continuous_usage: bool
    cache_salt: str = ""
    """Text that keeps this request's blocks in the prefix cache apart from those of other texts."""


def parse_completion_request(
    raw: bytes, *, model: str, max_model_len: int, thinks: bool
) -> CompletionRequest:
    """Parses the body of a request. Raises RefusalError: with status 404 for an unknown model, with status
    400 for any other request that vLLM would refuse."""
    body = _load(raw)
    asked_model = body.get("model") or model
    if asked_model != model:
        raise RefusalError(
            404,
            f"The model `{asked_model}` does not exist. Valid aliases: {model}.",
            kind="NotFoundError",
            param="model",
        )
    thinking = thinks and _asks_to_think(body)
    prompt = render_prompt(list(_messages(body)), thinks=thinks, thinking=thinking)
    options = body.get("stream_options")
    stream_options = options if isinstance(options, dict) else {}
    include_usage = stream_options.get("include_usage") is True
    seed = body.get("seed")
    return CompletionRequest(
        model=model,
        prompt=prompt,
        max_tokens=_max_tokens(body, len(prompt), max_model_len),
        ignore_eos=body.get("ignore_eos") is True,
        seed=seed if isinstance(seed, int) else 0,
        thinking=thinking,
        stream=body.get("stream") is True,
        include_usage=include_usage,
        continuous_usage=include_usage and stream_options.get("continuous_usage_stats") is True,
        cache_salt=str(body.get("cache_salt") or ""),
    )


class Completion:
    """Writes the answer to one request, token by token. `advance` is called for every token, so it must be
    cheap: the bytes around each token's text are prepared once.

    `write` is the function that receives the bytes, already framed for HTTP's chunked encoding if `chunked`
    is true. At first `write` appends the bytes to `pending`; the caller later replaces `write` with the
    socket's method. If the answer is not streamed, `write` is None.
    """

    def __init__(
        self,
        *,
        request_id: str,
        created_unix_s: int,
        chat: CompletionRequest,
        answer: SimulatedAnswer,
        request: Request,
        counts_reasoning: bool,
        shows_cached_tokens: bool,
        chunked: bool,
    ) -> None:
        self.chat = chat
        self.chunked = chunked
        self.answer = answer
        self.request = request
        self.made = 0
        """Tokens made so far."""
        self.last_token_s = 0.0
        self.pending: list[bytes] = []
        self.write: Callable[[bytes], None] | None = self.pending.append if chat.stream else None
        self.on_end: Callable[[], None] | None = None
        self._identity: dict[str, object] = {"id": request_id, "created": created_unix_s}
        self._counts_reasoning = counts_reasoning
        self._shows_cached_tokens = shows_cached_tokens
        identity = {
            "id": request_id,
            "object": "chat.completion.chunk",
            "created": created_unix_s,
            "model": chat.model,
        }
        self._open = b"data: " + _dump(identity)[:-1] + b',"choices":['
        self._content = self._open + b'{"index":0,"delta":{"content":'
        self._reasoning = self._open + b'{"index":0,"delta":{"reasoning":'
        self._close = _NOT_FINISHED + (b"" if chat.continuous_usage else _END)

    def advance(self) -> None:
        """Counts one more token. If the answer is streamed, also writes the token's event, unless the token
        has no text."""
        index = self.made
        self.made = index + 1
        if self.write is None:
            return
        if index == 0:
            self._write_role()
        if self.made == len(self.answer.tokens):
            self._write_last(index)
        elif not self.answer.is_silent(index):
            start = self._reasoning if index in self.answer.reasoning else self._content
            event = start + _JSON_TEXT[self.answer.tokens[index]] + self._close
            if self.chat.continuous_usage:
                event += self._running_usage(self.made) + _END
            self._write_event(event)

    def finish(self) -> None:
        """Ends the answer and calls `on_end`. If the answer is streamed, first writes the usage (where asked
        for) and the end of the stream."""
        if self.write is not None:
            if self.chat.include_usage:
                usage = _dump({name: value for name, value in self.usage().items() if value is not None})
                self._write_event(self._open + b'],"usage":' + usage + _SIGNED + _END)
            self._write_event(b"data: [DONE]\n\n")
        if self.on_end is not None:
            self.on_end()

    def usage(self, made: int | None = None) -> dict[str, object]:
        """Builds vLLM's `usage` object after `made` tokens, by default after all tokens made so far. Entries
        that the server does not report are None."""
        made = self.made if made is None else made
        prompt = self.request.prompt_tokens
        cached = {"cached_tokens": self.request.cached_tokens} if self._shows_cached_tokens else None
        reasoning = {"reasoning_tokens": self._reasoning_among(made)} if self._counts_reasoning else None
        return {
            "prompt_tokens": prompt,
            "total_tokens": prompt + made,
            "completion_tokens": made,
            "prompt_tokens_details": cached,
            "completion_tokens_details": reasoning,
        }

    def whole(self) -> bytes:
        """Builds the body of an answer that is not streamed."""
        tokens, reasoning = self.answer.tokens, self.answer.reasoning
        texts = [token for index, token in enumerate(tokens) if not self.answer.is_silent(index)]
        thought = "".join(texts[: len(reasoning)])
        message = {
            "role": "assistant",
            "content": "".join(texts[len(reasoning) :]) or None,
            **_NULLS_OF_MESSAGE,
            "reasoning": thought or None,
        }
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": self.answer.finish_reason,
            "stop_reason": None,
            "token_ids": None,
            "routed_experts": None,
        }
        return _dump(
            {
                "id": self._identity["id"],
                "object": "chat.completion",
                "created": self._identity["created"],
                "model": self.chat.model,
                "choices": [choice],
                "service_tier": None,
                "system_fingerprint": FINGERPRINT,
                "usage": self.usage(),
                **_NULLS_OF_ANSWER,
            }
        )

    def _write_role(self) -> None:
        usage = self._running_usage(0) if self.chat.continuous_usage else b""
        self._write_event(self._open + _ROLE + usage + _END_OF_ROLE)

    def _write_last(self, index: int) -> None:
        kind = b"reasoning" if index in self.answer.reasoning else b"content"
        silent = self.answer.is_silent(index)
        delta = b"" if silent else b'"%b":%b' % (kind, _JSON_TEXT[self.answer.tokens[index]])
        reason = self.answer.finish_reason.encode()
        usage = self._running_usage(self.made) if self.chat.continuous_usage else b""
        signature = b"" if self.chat.include_usage else _SIGNED
        choice = b'{"index":0,"delta":{%b},"logprobs":null,"finish_reason":"%b",' % (delta, reason)
        self._write_event(
            self._open + choice + b'"stop_reason":null,"token_ids":null}]' + usage + signature + _END
        )

    def _write_event(self, event: bytes) -> None:
        assert self.write is not None  # callers have checked
        self.write(b"%x\r\n%b\r\n" % (len(event), event) if self.chunked else event)

    def _running_usage(self, made: int) -> bytes:
        usage = self.usage(made)
        del usage["prompt_tokens_details"]
        return b',"usage":' + _dump(usage)

    def _reasoning_among(self, made: int) -> int:
        reasoning = self.answer.reasoning
        return min(max(0, made - reasoning.start), len(reasoning))


def _dump(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


_JSON_TEXT = {text: _dump(text) for word in ANSWER_WORDS for text in (word, f" {word}")} | {"": b'""'}
_NOT_FINISHED = b'},"logprobs":null,"finish_reason":null,"token_ids":null}]'
_ROLE = b'{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
_END_OF_ROLE = b',"prompt_token_ids":null,"prompt_text":null}\n\n'
_SIGNED = b',"system_fingerprint":"%b"' % FINGERPRINT.encode()
_END = b"}\n\n"
_NULLS_OF_MESSAGE = {"refusal": None, "annotations": None, "audio": None, "function_call": None}
_NULLS_OF_ANSWER = {
    "prompt_logprobs": None,
    "prompt_token_ids": None,
    "prompt_text": None,
    "kv_transfer_params": None,
    "ec_transfer_params": None,
    "metrics": None,
}


def _load(raw: bytes) -> dict[str, object]:
    try:
        body = json.loads(raw)
    except ValueError as error:
        raise _invalid("body", f"JSON decode error: {error}") from None
    if not isinstance(body, dict):
        raise _invalid("body", "Input should be a valid dictionary")
    return body


def _asks_to_think(body: Mapping[str, object]) -> bool:
    """Whether the request asks for reasoning. Reasoning is off by default, unlike in Qwen3's own template."""
    keywords = body.get("chat_template_kwargs")
    asked = keywords.get("enable_thinking") if isinstance(keywords, dict) else None
    return (body.get("enable_thinking") if asked is None else asked) is True


def _messages(body: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _invalid("body.messages", "Field required")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise _invalid(f"body.messages.{index}", "Input should be a message with a role")
        yield message["role"], _text_of(message.get("content"))


def _text_of(content: object) -> str:
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, dict))
        return "\n".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _max_tokens(body: Mapping[str, object], prompt_tokens: int, max_model_len: int) -> int:
    """Returns how many tokens may be made: the number asked for, at most what the context has left, as in
    vLLM. Raises RefusalError for an invalid number, or if no token is possible."""
    name = "max_tokens" if body.get("max_completion_tokens") is None else "max_completion_tokens"
    asked = body.get(name)
    if asked is None:
        asked = max_model_len
    elif not isinstance(asked, int):
        raise _invalid(f"body.{name}", "Input should be a valid integer")
    elif asked > max_model_len:
        raise _bad_request(
            f"{name}={asked} cannot be greater than max_model_len={max_model_len}. "
            "Please request fewer output tokens.",
            name,
            asked,
        )
    if prompt_tokens > max_model_len:
        # vLLM's tokenizer stops one token past the limit, and it says so.
        raise _bad_request(
            f"This model's maximum context length is {max_model_len} tokens. However, your prompt contains "
            f"at least {max_model_len + 1} input tokens, which exceeds this limit even without any output "
            "tokens. Please reduce the length of the input prompt.",
            "input_tokens",
            max_model_len + 1,
        )
    allowed = min(asked, max_model_len - prompt_tokens)
    if allowed < 1:
        raise _bad_request(f"max_tokens must be at least 1, got {allowed}.", "max_tokens", allowed)
    return allowed


def _bad_request(message: str, parameter: str, value: int) -> RefusalError:
    text = f"{message} (parameter={parameter}, value={value})"
    return RefusalError(400, text, kind="BadRequestError", param=parameter)


def _invalid(location: str, message: str) -> RefusalError:
    text = f"1 validation error:\n  {{'loc': '{location}', 'msg': '{message}'}}"
    return RefusalError(400, text, kind="Bad Request", param=location)
