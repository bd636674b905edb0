"""The addresses, headers and TLS settings of one OpenAI-compatible server. Credentials are kept apart from
the address that may be shown."""

import base64
import ssl
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

import msgspec

from loadtest.errors import InputError
from loadtest.settings import NO_KEY, Settings


class Target(msgspec.Struct, kw_only=True, frozen=True):
    """One server. The field `shown` may be printed and stored. The field `headers` may not, because it holds
    credentials."""

    shown: str
    """Address of the server without credentials."""
    api_url: str
    """Base address of the API; ends in /v1."""
    metrics_urls: list[str]
    """Addresses at which to look for /metrics, in this order; empty if metrics are switched off."""
    metrics_headers: dict[str, str]
    """Headers for /metrics. They hold the server's credentials only if /metrics is on the same server."""
    headers: dict[str, str]
    ca_file: str | None
    """PEM file of a private certificate authority; None without one."""

    def tls(self) -> ssl.SSLContext | None:
        """Builds the TLS context that trusts the certificates in `ca_file`. Returns None if there is no
        `ca_file`. Raises InputError if the file holds no usable certificate."""
        if self.ca_file is None:
            return None
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise InputError(f"--ca-file: {self.ca_file} holds no usable certificate ({error}).") from error


def split_credentials(host: str) -> tuple[str, str | None]:
    """Splits `https://user:password@host` into two values: the address without credentials, and the value of
    the Authorization header. The second is None if `host` holds no credentials."""
    parts = urlsplit(host)
    if parts.username is None:
        return host, None
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    address = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=address)), "Basic " + base64.b64encode(pair.encode()).decode()


def make_target(host: str | None, settings: Settings) -> Target:
    """Builds the target from the settings and from `host`, the value of `--host`. This is an http(s) address;
    a path prefix and /v1 may follow. Raises InputError if there is no usable address."""
    if not host:
        raise InputError("No server is given: name it with --host http://ADDRESS:PORT.")
    shown, authorization = split_credentials(host.strip())
    parts = urlsplit(shown)
    if parts.scheme not in ("http", "https") or not parts.hostname or not _has_good_port(parts):
        raise InputError(f"--host: '{shown}' is not an address such as http://127.0.0.1:8000.")
    if parts.query or parts.fragment:
        raise InputError(f"--host: '{shown}' must not have a query or a fragment.")
    prefix = parts.path.rstrip("/").removesuffix("/v1")
    root = urlunsplit((parts.scheme, parts.netloc, "", "", ""))
    metrics_urls, metrics_headers = _metrics(root, prefix, settings)
    headers = _headers(authorization, settings)
    return Target(
        shown=root + prefix,
        api_url=f"{root}{prefix}/v1",
        metrics_urls=metrics_urls,
        metrics_headers=headers if metrics_headers is None else metrics_headers,
        headers=headers,
        ca_file=str(settings.ca_file) if settings.ca_file else None,
    )


def _has_good_port(parts: SplitResult) -> bool:
    try:
        return parts.port != 0
    except ValueError:
        return False


def _metrics(root: str, prefix: str, settings: Settings) -> tuple[list[str], dict[str, str] | None]:
    """Returns two values: the addresses at which to look for /metrics, and the headers to send there. The
    headers are None if they are the same as for chat requests."""
    if settings.metrics_url == "off":
        return [], {}
    if settings.metrics_url is None:
        return list(dict.fromkeys([f"{root}{prefix}/metrics", f"{root}/metrics"])), None
    url, authorization = split_credentials(settings.metrics_url)
    if urlsplit(url).scheme not in ("http", "https"):
        raise InputError(f"--metrics-url: '{url}' is not an address such as http://127.0.0.1:8000/metrics.")
    same_server = urlsplit(url)[:2] == urlsplit(root)[:2]
    if same_server and authorization is None:
        return [url], None
    return [url], {"Authorization": authorization} if authorization else {}


def _headers(authorization: str | None, settings: Settings) -> dict[str, str]:
    key = settings.api_key.get_secret_value()
    if not key.isprintable():
        raise InputError("LOADTEST_API_KEY holds characters that cannot be sent, such as a line end.")
    if key != NO_KEY or authorization is None:
        authorization = f"Bearer {key}"
    return {"Content-Type": "application/json", "Authorization": authorization, **settings.extra_headers}
