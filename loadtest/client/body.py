"""The JSON body of a chat completion request."""

import msgspec

from loadtest.record import UserClass
from loadtest.settings import Settings
from loadtest.workload.prompts import Message


def encode_chat_body(
    settings: Settings,
    *,
    model: str,
    messages: list[Message],
    max_tokens: int,
    cache_salt: str | None = None,
    user_class: UserClass | None = None,
) -> bytes:
    """Encodes the JSON body of one streamed chat completion. Keys of the setting `extra_body` override all
    other keys, and those of the class's `extra_body` override them.

    cache_salt: text without which the server must not find the prompt in its prefix cache.
    user_class: the class of the user who asks; None for a test request.
    """
    temperature = None if user_class is None else user_class.temperature
    body: dict[str, object] = {
        "model": model,
        "messages": messages,
        "max_tokens": max_tokens,
        "temperature": settings.temperature if temperature is None else temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if settings.ignore_eos:
        body["ignore_eos"] = True
    if settings.thinking is not None:
        body["chat_template_kwargs"] = {"enable_thinking": settings.thinking == "on"}
    if cache_salt is not None:
        body["cache_salt"] = cache_salt
    own = {} if user_class is None else user_class.extra_body
    return msgspec.json.encode({**body, **settings.extra_body, **own})
