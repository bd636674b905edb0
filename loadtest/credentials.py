"""Keeps secrets out of everything that is shown, stored or sent to other processes. The only module that
takes credentials out of an address."""

import base64
import json
import re
from collections.abc import Mapping
from urllib.parse import unquote

from loadtest.errors import InputError

NOT_RECORDED = "(not recorded)"
"""Stands where a secret was."""
MIN_SECRET_CHARS = 4
"""Shorter values are not searched for in texts: they would be found by chance."""
_NEXT_ADDRESS = re.compile(r",\s*(?=https?://)")
_SECRET_NAME = re.compile(r"key|secret|passw|token|auth|credential|cookie", re.IGNORECASE)


def split_credentials(address: str) -> tuple[str, str | None]:
    """Splits `https://user:password@host` into two values: the address without credentials, and the value of
    the Authorization header. The second is None if the address holds no credentials.

    Everything before the last @ of the address belongs to the credentials, so that no part of a password is
    ever shown, whatever characters it has. An @ in a path or a query must be written as %40.
    """
    credentials, found, place = address.rpartition("@")
    if not found:
        return address, None
    scheme, slashes, pair = credentials.partition("://") if "://" in credentials else ("", "", credentials)
    user, _, password = pair.partition(":")
    encoded = base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode()
    return f"{scheme}{slashes}{place}", f"Basic {encoded}"


def split_addresses(text: str) -> list[str]:
    """Splits a list of addresses, which is written with commas or as a JSON list, into its addresses. Raises
    ValueError for a JSON list that is none of texts."""
    if not text.lstrip().startswith("["):
        return _NEXT_ADDRESS.split(text.strip())
    addresses = json.loads(text)
    if not addresses or not all(isinstance(address, str) for address in addresses):
        raise ValueError("not a list of addresses")
    return list(addresses)


def shown_address(address: str) -> str:
    """Returns an address without credentials and without the values of its query."""
    place, mark, _ = split_credentials(address)[0].partition("?")
    return f"{place}{mark}{NOT_RECORDED if mark else ''}"


def shown_addresses(text: str) -> str:
    """Returns a list of addresses as text, each as `shown_address` returns it."""
    try:
        return ",".join(map(shown_address, split_addresses(text)))
    except ValueError:
        return NOT_RECORDED  # half a JSON list: nobody knows where its passwords are


def hide_values(values: Mapping[str, object], *, all_texts: bool = False) -> dict[str, object]:
    """Returns a JSON object whose texts are replaced by NOT_RECORDED: with `all_texts` all of them, otherwise
    those whose name sounds like a secret (such as `api_key`)."""
    return {
        name: _hidden(value, secret=all_texts or bool(_SECRET_NAME.search(name)))
        for name, value in values.items()
    }


def _hidden(value: object, *, secret: bool) -> object:
    if isinstance(value, Mapping):
        return hide_values(value, all_texts=secret)
    if isinstance(value, list):
        return [_hidden(entry, secret=secret) for entry in value]
    return NOT_RECORDED if secret and isinstance(value, str) else value


def hidden_texts(values: Mapping[str, object], *, all_texts: bool = False) -> set[str]:
    """Returns the texts that `hide_values` leaves out of a JSON object."""
    found: set[str] = set()
    for name, value in values.items():
        secret = all_texts or bool(_SECRET_NAME.search(name))
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(entry, Mapping):
                found |= hidden_texts(entry, all_texts=secret)
            elif secret:
                found |= secrets_in(entry)
    return found


def named_secrets(values: object) -> list[str]:
    """Returns the names in a JSON value that sound like a secret and hold a text. A name with an object is
    none: the schema of a tool may have a parameter called `author` or `key`."""
    if isinstance(values, list):
        return [name for entry in values for name in named_secrets(entry)]
    if not isinstance(values, Mapping):
        return []
    own = [name for name, value in values.items() if isinstance(value, str) and _SECRET_NAME.search(name)]
    return own + [name for value in values.values() for name in named_secrets(value)]


def fill_values(hidden: Mapping[str, object], own: Mapping[str, object], *, flag: str) -> dict[str, object]:
    """Returns `hidden`, a result of `hide_values`, with each hidden text replaced by the text of that name in
    `own`. Raises InputError, naming the flag, if `own` lacks one."""
    return {name: _filled(value, own.get(name), name=name, flag=flag) for name, value in hidden.items()}


def _filled(value: object, own: object, *, name: str, flag: str) -> object:
    if isinstance(value, Mapping):
        return fill_values(value, own if isinstance(own, Mapping) else {}, flag=flag)
    if isinstance(value, list):
        texts = own if isinstance(own, list) and len(own) == len(value) else [None] * len(value)
        return [_filled(entry, text, name=name, flag=flag) for entry, text in zip(value, texts, strict=True)]
    if value != NOT_RECORDED:
        return value
    if not isinstance(own, str):
        raise InputError(
            f"{flag}: this process does not know the value of '{name}'. Secrets are not sent between "
            "processes: give each process the same flag, or set it in its environment or .env."
        )
    return own


def secrets_in(values: object) -> set[str]:
    """Returns the texts in a JSON value, and the words of each: a server may repeat only a part of a
    header."""
    if isinstance(values, Mapping):
        return set().union(*map(secrets_in, values.values()))
    if isinstance(values, list):
        return set().union(*map(secrets_in, values))
    texts = {values, *values.split()} if isinstance(values, str) else set[str]()
    return {text for text in texts if len(text) >= MIN_SECRET_CHARS}


def credentials_in(address: str) -> set[str]:
    """Returns the secrets in an address: its password as it is written and as it is meant, and the header
    made of it."""
    header = split_credentials(address)[1]
    if header is None:
        return set()
    encoded = header.removeprefix("Basic ")
    password = base64.b64decode(encoded).decode().partition(":")[2]
    written = address.rpartition("@")[0].partition("://")[2].partition(":")[2]
    return {text for text in (encoded, password, written) if len(text) >= MIN_SECRET_CHARS}


def without_secrets(text: str, secrets: frozenset[str]) -> str:
    """Returns a text in which each of the secrets is replaced by NOT_RECORDED, the longest first."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, NOT_RECORDED)
    return text
