"""The addresses, headers and TLS settings of one OpenAI-compatible server. Credentials are kept apart from
the address that may be shown."""

import re
import ssl
from urllib.parse import SplitResult, urlsplit, urlunsplit

import msgspec

from loadtest.credentials import (
    credentials_in,
    shown_address,
    split_addresses,
    split_credentials,
    without_secrets,
)
from loadtest.errors import InputError
from loadtest.settings import NO_KEY, Settings

_ENDPOINT = re.compile(r"(?:/v1(?:/(?:chat/completions|completions|models))?)?/*$")
"""What may follow the address of a server: the version of its API, and one of the endpoints of that."""


class MetricsSource(msgspec.Struct, kw_only=True, frozen=True):
    """One server whose metrics are read."""

    urls: list[str]
    """Addresses at which its metrics may be, to be tried in this order."""
    headers: dict[str, str]
    """Headers for these addresses. They hold the credentials of the tested server only if the metrics are on
    that server."""


class Target(msgspec.Struct, kw_only=True, frozen=True):
    """One server. The field `shown` may be printed and stored. The field `headers` may not, because it holds
    credentials."""

    shown: str
    """Address of the server without credentials."""
    api_url: str
    """Base address of the API; ends in /v1."""
    metrics: list[MetricsSource]
    """The servers whose metrics are read: one, or each replica. Empty if metrics are switched off."""
    headers: dict[str, str]
    ca_file: str | None
    """PEM file of a private certificate authority; None without one."""
    secrets: frozenset[str] = frozenset()
    """Texts that must not be shown, such as the key."""

    def without_secrets(self, text: str) -> str:
        """Returns a text, such as an error message of the server, without the secrets in it."""
        return without_secrets(text, self.secrets)

    @property
    def has_key(self) -> bool:
        """Whether requests carry a key, or a name and a password."""
        given = [value for name, value in self.headers.items() if name.lower() == "authorization"]
        return given != [f"Bearer {NO_KEY}"]

    def tls(self) -> ssl.SSLContext | None:
        """Builds the TLS context that trusts the certificates in `ca_file`. Returns None if there is no
        `ca_file`. Raises InputError if the file holds no usable certificate."""
        if self.ca_file is None:
            return None
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise InputError(f"--ca-file: {self.ca_file} holds no usable certificate ({error}).") from error


def make_target(host: str | None, settings: Settings) -> Target:
    """Builds the target from the settings and from `host`, the value of `--host`. This is an http(s) address;
    a path prefix, /v1 and an endpoint such as /chat/completions may follow. Raises InputError if there is no
    usable address."""
    if not host:
        raise InputError("No server is given: name it with --host http://ADDRESS:PORT.")
    shown, authorization = split_credentials(host.strip())
    parts = urlsplit(shown)
    if parts.scheme not in ("http", "https") or not parts.hostname or not _has_good_port(parts):
        raise InputError(f"--host: '{shown}' is not an address such as http://127.0.0.1:8000.")
    if parts.query or parts.fragment:
        raise InputError(f"--host: '{shown}' must not have a query or a fragment.")
    prefix = _ENDPOINT.sub("", parts.path)
    root = urlunsplit((parts.scheme, parts.netloc, "", "", ""))
    headers = _headers(authorization, settings)
    addresses = [host.strip(), settings.metrics_url or "", settings.gpu_metrics]
    return Target(
        shown=root + prefix,
        api_url=f"{root}{prefix}/v1",
        metrics=_metrics(root, prefix, settings, headers=headers),
        headers=headers,
        ca_file=str(settings.ca_file) if settings.ca_file else None,
        secrets=frozenset(settings.secrets()).union(*map(credentials_in, addresses)),
    )


def _has_good_port(parts: SplitResult) -> bool:
    try:
        return parts.port != 0
    except ValueError:
        return False


def _metrics(root: str, prefix: str, settings: Settings, *, headers: dict[str, str]) -> list[MetricsSource]:
    """Returns the servers whose metrics are read. headers: those of chat requests."""
    if settings.metrics_url == "off":
        return []
    if settings.metrics_url is None:
        urls = list(dict.fromkeys([f"{root}{prefix}/metrics", f"{root}/metrics"]))
        return [MetricsSource(urls=urls, headers=headers)]
    try:
        addresses = split_addresses(settings.metrics_url)
    except ValueError:
        raise InputError(
            "--metrics-url: a list of addresses is written with commas, or as a JSON list of texts."
        ) from None
    return [_named_source(address, root, headers) for address in addresses]


def _named_source(address: str, root: str, headers: dict[str, str]) -> MetricsSource:
    url, authorization = split_credentials(address.strip())
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or not _has_good_port(parts):
        raise InputError(
            f"--metrics-url: '{shown_address(url)}' is not an address such as http://127.0.0.1:8000/metrics."
        )
    if authorization is None and parts[:2] == urlsplit(root)[:2]:
        return MetricsSource(urls=[url], headers=headers)
    return MetricsSource(urls=[url], headers={"Authorization": authorization} if authorization else {})


def _headers(authorization: str | None, settings: Settings) -> dict[str, str]:
    key = settings.api_key.get_secret_value()
    if not key.isprintable():
        raise InputError("LOADTEST_API_KEY holds characters that cannot be sent, such as a line end.")
    if key != NO_KEY or authorization is None:
        authorization = f"Bearer {key}"
    return {"Content-Type": "application/json", "Authorization": authorization, **settings.extra_headers}
