"""All settings of a load test. They come from Locust's flags and web form, from environment variables
(`LOADTEST_*`) and from `.env`. This module uses only Locust's argument parser."""

import difflib
import json
import os
from argparse import ArgumentParser
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from loadtest.credentials import (
    NOT_RECORDED,
    fill_values,
    hidden_texts,
    hide_values,
    secrets_in,
    shown_addresses,
)
from loadtest.errors import InputError
from loadtest.record import Slo, UserClass
from loadtest.workload.arrivals import ArrivalProcess
from loadtest.workload.classes import ClassPlan, mistake_in_answers, read_workload_file
from loadtest.workload.distributions import Distribution
from loadtest.workload.pauses import LONGEST_ERROR_PAUSE_S

ENVIRONMENT_PREFIX = "LOADTEST_"
NO_KEY = "EMPTY"
MAX_USERS = 100_000
"""Largest accepted number of users: catches typing errors, far above what one server can hold."""
RECORDED_ARRIVALS = "recorded"
"""Value of the setting `arrivals` with which sessions begin when they began in their file."""
_SLO = Slo()
_CLASS_SETTINGS = ("prompt_tokens", "output_tokens", "think_s", "turns")
"""Settings that describe the users of a run without a workload file."""


def _levels(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        levels = [int(part) for part in value.split(",")]
    except ValueError:
        levels = []
    if not levels or not all(0 < level <= MAX_USERS for level in levels):
        raise ValueError(f"'{value}' is not a list of user counts such as 1,2,4,8,16.")
    return levels


def _distribution(value: object) -> object:
    text = str(value)
    Distribution.parse(text)
    return text


def _object(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        parsed = json.loads(value)
    except ValueError as error:
        raise ValueError(f"the value is not JSON ({error}).") from error
    if not isinstance(parsed, dict):
        raise ValueError('the value must be a JSON object such as {"name": "value"}.')  # noqa: TRY004 (pydantic's)
    return parsed


def _token_distribution(value: object) -> object:
    text = str(value)
    if Distribution.parse(text).mean < 1:
        raise ValueError(f"'{text}' is less than one token.")
    return text


TokenDistribution = Annotated[str, BeforeValidator(_token_distribution)]
DistributionText = Annotated[str, BeforeValidator(_distribution)]
Levels = Annotated[tuple[int, ...], NoDecode, BeforeValidator(_levels)]
JsonObject = Annotated[dict[str, Any], NoDecode, BeforeValidator(_object)]
Headers = Annotated[dict[str, str], NoDecode, BeforeValidator(_object)]


class Settings(BaseSettings):
    """All settings with their defaults. A flag or a field of the web form overrides the environment, which
    overrides `.env`. An empty value counts as not given."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        protected_namespaces=(),
        hide_input_in_errors=True,
        allow_inf_nan=False,
        frozen=True,
    )

    model: str | None = Field(None, description="served model; default: the only one that /v1/models lists")
    api_key: SecretStr = Field(SecretStr(NO_KEY), description="secret: environment or .env only")
    levels: Levels = Field(
        (), description="numbers of users to hold, one after the other, such as 1,2,4,8,16"
    )
    level_s: float = Field(
        30, gt=0, description="length of a level in seconds, from when all its users have started"
    )
    budget_s: float = Field(
        900, gt=0, description="scenarios/find_capacity.py: maximum length of the search in seconds"
    )
    settle_s: float = Field(5, ge=0, description="first seconds of each level, left out of the analysis")
    prompt_tokens: TokenDistribution = Field(
        "lognormal:512,0.6",
        description="tokens of a prompt, the new text of a turn without the history sent with it: N, LO-HI, "
        "lognormal:MEAN,CV or exp:MEAN",
    )
    output_tokens: TokenDistribution = Field(
        "lognormal:128,0.6", description="tokens of an answer, in the same forms"
    )
    think_s: DistributionText = Field(
        "0", description="seconds between an answer and the next question, in the same forms"
    )
    error_pause_s: float = Field(
        1,
        ge=0,
        le=LONGEST_ERROR_PAUSE_S,
        description="seconds that a user pauses after a failed request, doubled by each further failure in a "
        "row up to 30, or longer (up to 30) if the server says Retry-After; 0: only what the server says",
    )
    turns: int = Field(1, ge=1, description="turns of a conversation; each request sends its history")
    thinking: Literal["on", "off"] | None = Field(
        None, description="on or off, sent as chat_template_kwargs.enable_thinking; default: not sent"
    )
    arrivals: str | None = Field(
        None,
        description="open loop of level_s seconds: constant:RATE, poisson:RATE or gamma:RATE,BURSTINESS; "
        "RATE in requests/s, or FROM-TO; with sessions, RATE in sessions/s, or recorded: they begin as in "
        "their file",
    )
    trace: Path | None = Field(
        None,
        description="open loop from a trace file: Azure CSV, Mooncake JSONL, or CSV of seconds,prompt,output",
    )
    trace_speed: float = Field(
        1, gt=0, description="replay the trace, or the recorded times of sessions, this many times as fast"
    )
    prompts: Path | None = Field(
        None, description="JSONL of {messages: [...]}: your own prompts instead of synthetic text"
    )
    workload: Path | None = Field(
        None,
        description="TOML file of classes of users, each with its lengths, turns and pauses "
        "(docs/workloads.md)",
    )
    sessions: Path | None = Field(
        None,
        description="file of recorded sessions to replay: ShareGPT, Mooncake, Azure, BurstGPT, OpenAI batch, "
        "OpenTelemetry spans or our own JSONL (docs/workloads.md)",
    )
    session_times: Literal["pauses", "recorded"] = Field(
        "pauses",
        description="when turns of a session are sent: pauses after the answer before, or recorded times "
        "(with arrivals)",
    )
    session_history: Literal["server", "recorded"] = Field(
        "server", description="answers that are sent back in sessions: server's own, or recorded"
    )
    ignore_eos: bool = Field(True, description="make every answer as long as was drawn: true or false")
    temperature: float = Field(0, ge=0, description="sampling temperature")
    seed: int = Field(0, description="random seed of lengths and times")
    request_timeout_s: float = Field(
        600, gt=0, description="time limit of one whole request in seconds, with connecting (at most 10)"
    )
    reports_dir: Path = Field(Path("reports"), description="folder in which run folders are created")
    metrics_url: str | None = Field(
        None, description="address of Prometheus metrics, or off; default: the host's /metrics"
    )
    sample_s: float = Field(1, gt=0, description="seconds between two samples of the server's metrics")
    gpu_metrics: str = Field(
        "auto", description="source of GPU figures: auto, nvml, off, or the address of a DCGM exporter"
    )
    model_config_file: Path | None = Field(
        None,
        validation_alias=AliasChoices("model_config_file", f"{ENVIRONMENT_PREFIX}MODEL_CONFIG"),
        description="path of the model's config.json: gives the bytes of a KV token",
    )
    extra_body: JsonObject = Field({}, description="JSON object merged into every request")
    extra_headers: Headers = Field({}, description="JSON object of extra HTTP headers")
    ca_file: Path | None = Field(None, description="PEM file of a private certificate authority")
    slo_ttft_p95_s: float = Field(
        _SLO.ttft_p95_s, gt=0, description="objective: p95 of the time to first token, in seconds"
    )
    slo_tpot_p95_s: float = Field(
        _SLO.tpot_p95_s, gt=0, description="objective: p95 of the time per output token, in seconds"
    )
    slo_stall_p95_s: float | None = Field(
        None,
        gt=0,
        description="objective: p95 of the longest gap between two events of an answer, in seconds; "
        "default: none",
    )
    slo_preempted_fraction: float = Field(
        _SLO.preempted_fraction, gt=0, le=1, description="objective: preemptions per finished request"
    )
    slo_kv_blocked_fraction: float = Field(
        _SLO.kv_blocked_fraction,
        gt=0,
        le=1,
        description="objective: fraction of time in which a request waits for KV blocks",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        for path in (self.prompts, self.model_config_file, self.ca_file, self.trace, self.workload):
            if path is not None and not path.is_file():
                raise ValueError(f"the file {path} does not exist.")
        self._refuse_other_answers()
        if self.open_loop:
            self._refuse_users_in_open_loop()
        if self.workload is not None:
            self._refuse_beside_workload()
        self._check_sessions()
        return self

    def _refuse_other_answers(self) -> None:
        """Refuses a body that asks for answers which cannot be measured: several at once, or not streamed."""
        if (mistake := mistake_in_answers(self.extra_body)) is not None:
            raise ValueError(f"--extra-body {mistake}.")

    @cached_property
    def classes(self) -> list[UserClass]:
        """What users ask: the classes of the workload file, or one class without a name that the other
        settings describe. Raises ValueError."""
        if self.workload is None:
            lengths = {name: getattr(self, name) for name in _CLASS_SETTINGS}
            return [UserClass(**{**lengths, "name": "", "turns": str(self.turns)})]
        try:
            return read_workload_file(self.workload)
        except OSError as error:
            raise ValueError(f"{self.workload} cannot be read ({error.strerror}).") from None

    def _refuse_beside_workload(self) -> None:
        given = [name for name in ("prompts", "trace") if getattr(self, name) is not None]
        given += [name for name in _CLASS_SETTINGS if name in self.model_fields_set]
        if given:
            raise ValueError(
                f"--{given[0].replace('_', '-')} cannot be combined with --workload: the file "
                f"{self.workload} says what users ask."
            )
        for each in self.classes:
            if self.open_loop and ClassPlan.of(each).has_history:
                raise ValueError(
                    f"{self.workload}: class '{each.name}': turns and steps cannot be combined with "
                    "--arrivals: an open loop has no conversations."
                )

    def _check_sessions(self) -> None:
        given = [name for name in ("workload", "trace", "prompts") if getattr(self, name) is not None]
        given += [name for name in _CLASS_SETTINGS if name in self.model_fields_set]
        if self.sessions is None:
            if self.arrivals == RECORDED_ARRIVALS:
                raise ValueError("--arrivals recorded needs --sessions, whose file says when sessions begin.")
        elif given:
            raise ValueError(
                f"--{given[0].replace('_', '-')} cannot be combined with --sessions: the file "
                f"{self.sessions} says what users ask."
            )
        elif self.session_times == "recorded" and self.arrivals is None:
            raise ValueError(
                "--session-times recorded needs --arrivals: in a closed loop, a session begins when another "
                "one has ended."
            )

    @property
    def open_loop(self) -> bool:
        """Whether the load is an open loop: requests are sent at given times, without waiting for earlier
        answers."""
        return self.arrivals is not None or self.trace is not None

    def _refuse_users_in_open_loop(self) -> None:
        if self.arrivals is not None and self.trace is not None:
            raise ValueError("--arrivals and --trace cannot be combined: both say when requests are due.")
        if self.levels:
            raise ValueError(
                "--levels cannot be combined with --arrivals or --trace: an open loop has no users."
            )
        if self.turns > 1 or self.think_s != "0":
            raise ValueError(
                "--turns and --think-s cannot be combined with --arrivals or --trace: an open loop has no "
                "users."
            )
        if self.arrivals is not None and self.arrivals != RECORDED_ARRIVALS:
            ArrivalProcess.parse(self.arrivals)

    @property
    def slo(self) -> Slo:
        """The service-level objectives among the settings."""
        return Slo(
            ttft_p95_s=self.slo_ttft_p95_s,
            tpot_p95_s=self.slo_tpot_p95_s,
            stall_p95_s=self.slo_stall_p95_s,
            preempted_fraction=self.slo_preempted_fraction,
            kv_blocked_fraction=self.slo_kv_blocked_fraction,
        )

    def shared(self) -> dict[str, object]:
        """Returns the settings that the master sends to its workers, as JSON values without secrets. Left out
        are the API key, the values of extra headers, credentials in addresses, and what `extra_body` has
        under names such as `api_key`. With a workload file the lengths, turns and pauses are null: the
        classes have them; so it is with sessions, whose file only the master reads."""
        values = self.model_dump(mode="json", exclude={"api_key"})
        if self.workload is not None or self.sessions is not None:
            values.update(dict.fromkeys(_CLASS_SETTINGS))
        if self.sessions is not None:
            values["sessions"] = self.sessions.name
        return {name: public_value(name, value) for name, value in values.items()}

    def public(self) -> dict[str, object]:
        """Returns the settings that may be stored, as JSON values. The same secrets as in `shared` are left
        out."""
        values = self.shared()
        values["model_config"] = values.pop("model_config_file")
        return values

    def secrets(self) -> set[str]:
        """Returns the secrets among the settings."""
        key = self.api_key.get_secret_value()
        return {
            *secrets_in([] if key == NO_KEY else [key]),
            *secrets_in(self.extra_headers),
            *hidden_texts(self.extra_body),
        }


PRIVATE_SETTINGS = ("extra_headers", "extra_body", "metrics_url", "gpu_metrics")
"""Settings that can hold secrets. The API key is not among them, because it is no flag."""


def public_value(name: str, value: object) -> object:
    """Returns the value of a setting, or of its flag, without the secrets in it."""
    if name in ("metrics_url", "gpu_metrics") and isinstance(value, str):
        return shown_addresses(value)
    if name in ("extra_headers", "extra_body"):
        if isinstance(value, str):
            return _public_json(name, value)
        if isinstance(value, dict):
            return hide_values(value, all_texts=name == "extra_headers")
    return value


def _public_json(name: str, text: str) -> str:
    try:
        value = _object(text)
    except ValueError:
        return NOT_RECORDED
    return json.dumps(public_value(name, value))


_FLAGS = {
    ("model_config" if name == "model_config_file" else name): name
    for name in Settings.model_fields
    if name != "api_key"
}


def add_flags(parser: ArgumentParser) -> None:
    """Adds one flag to `parser` for each setting except the API key. Each flag is a string with the default
    None. Locust needs this: it sends parsed options between machines, and its web form converts a value to
    the type of the default. The form has all of them but those that can hold secrets."""
    group = parser.add_argument_group(
        "Seatcount", "Settings of the load test; each is also read from LOADTEST_<NAME>"
    )
    for flag, name in _FLAGS.items():
        field = Settings.model_fields[name]
        default = field.get_default()
        shown = "" if default in (None, (), {}) or isinstance(default, dict) else f" (default {default})"
        action = group.add_argument(
            f"--{flag.replace('_', '-')}",
            dest=flag,
            default=None,
            metavar="...",
            help=f"{field.description}{shown}".replace("%", "%%"),
        )
        # Locust sets this only on flags outside groups. Its page shows what the command line gave.
        vars(action)["include_in_web_ui"] = name not in PRIVATE_SETTINGS


def resolve_settings(options: Mapping[str, object], *, workload: Path | None = None) -> Settings:
    """Builds the settings from parsed Locust options, the environment and `.env`. workload: the workload file
    that holds if none is set, the one that the locustfile names. Raises InputError."""
    _refuse_unknown_names(os.environ)
    given = {name: options[flag] for flag, name in _FLAGS.items() if options.get(flag) not in (None, "")}
    settings = _validated(given)
    if workload is not None and settings.workload is None:
        return _validated({**given, "workload": workload})
    return settings


def settings_from_shared(values: Mapping[str, object], own: Mapping[str, object]) -> Settings:
    """Builds the settings from the values that the master sent and the secrets of this process: its API key,
    and the texts that `Settings.shared` leaves out, which come from its own options and environment. own: the
    options of this process. Raises InputError."""
    names = ("extra_headers", "extra_body")
    no_file = {"workload": None}  # the plan of the run has its classes; the file may be on the master's disk
    private = _validated(no_file | {name: own[name] for name in names if own.get(name) not in (None, "")})
    given = {name: value for name, value in values.items() if value is not None} | no_file
    given["sessions"] = values.get("sessions")
    for name in names:
        flag = f"--{name.replace('_', '-')}"
        hidden = values.get(name)
        if isinstance(hidden, dict):
            given[name] = fill_values(hidden, getattr(private, name), flag=flag)
    return _validated(given)


def _validated(given: Mapping[str, Any]) -> Settings:
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        flag = "".join(f"--{part} " for part in map(str, first["loc"][:1])).replace("_", "-")
        flag = flag.replace("--model-config-file", "--model-config").replace(
            f"--{ENVIRONMENT_PREFIX}".lower(), "--"
        )
        message = first["msg"].removeprefix("Value error, ").rstrip(".")
        raise InputError(f"{flag and flag.strip() + ': '}{message}.") from None


def _refuse_unknown_names(environment: Mapping[str, str]) -> None:
    known = [ENVIRONMENT_PREFIX + name.upper() for name in [*_FLAGS, "api_key"]]
    for name in environment:
        if name.startswith(ENVIRONMENT_PREFIX) and name not in known:
            matches = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {matches[0]}?" if matches else "."
            raise InputError(f"{name} is not a setting{hint}")


if __name__ == "__main__":  # Locust's own --help ends before it has read a locustfile
    _parser = ArgumentParser(prog="locust -f scenarios/chat.py", add_help=False, usage="%(prog)s [flags]")
    add_flags(_parser)
    _parser.print_help()
