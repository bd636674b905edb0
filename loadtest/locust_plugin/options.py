"""What the user has asked for, with Locust's command line or in its web form. Knows nothing of runs."""

from argparse import Namespace
from pathlib import Path

from locust.env import Environment
from locust.util.timespan import parse_timespan

from loadtest.credentials import split_credentials
from loadtest.run.messages import RunPlan
from loadtest.settings import PRIVATE_SETTINGS, Settings, public_value, resolve_settings

_PLAN = "seatcount_plan"  # travels with Locust's parsed options in each spawn message


class LocustOptions:
    """Reads the options that Locust parsed. A start from the web form overwrites them.

    With `--headless`, Locust later fills in a number of users and a spawn rate if the user gave none. Then
    nobody can see whether `-u` and `-r` were given, so this object copies their values when it is created.
    """

    def __init__(self, parsed: Namespace, *, workload: Path | None) -> None:
        """workload: the workload file that the locustfile names."""
        self.headless = bool(parsed.headless)
        self.processes = int(parsed.processes or 0)
        self._parsed = parsed
        self._workload = workload
        self._private: dict[str, object] = {}
        self._hide_private()
        self._users_flag: int | None = parsed.num_users
        self._spawn_rate_flag: float | None = parsed.spawn_rate

    def settings(self) -> Settings:
        """Builds the settings of the run that is about to begin. Called where runs are led. Raises
        InputError."""
        self._hide_private()
        return resolve_settings({**vars(self._parsed), **self.private()}, workload=self._workload)

    def private(self) -> dict[str, object]:
        """Returns the options of this process that can hold secrets, with their secrets. In the options that
        Locust has, and that the master sends to the workers, the secrets are hidden."""
        return dict(self._private)

    def _hide_private(self) -> None:
        """Hides secrets in Locust's options. Called again for each run, because the web form may change
        them."""
        for name in PRIVATE_SETTINGS:
            given = getattr(self._parsed, name)
            shown = public_value(name, given)
            if shown != public_value(name, self._private.get(name)):
                self._private[name] = given
            setattr(self._parsed, name, shown)

    def given(self, setting: str) -> bool:
        """Whether a flag or the web form gives this setting a value."""
        return getattr(self._parsed, setting) not in (None, "")

    @property
    def users(self) -> int | None:
        """Number of users from `-u` or the web form; None if there is none."""
        users: int | None = self._users_flag if self.headless else self._parsed.num_users
        return users

    @property
    def users_flag_given(self) -> bool:
        """Whether `-u` was given with `--headless`. Always False with the web page, whose form always has a
        number of users."""
        return self.headless and self._users_flag is not None

    @property
    def spawn_rate(self) -> float | None:
        """Users to start per second, from `-r` or the web form; None if there is none."""
        rate: float | None = self._spawn_rate_flag if self.headless else self._parsed.spawn_rate
        return rate

    @property
    def run_time_s(self) -> float | None:
        """Time limit in seconds, from `-t` or the web form; None if there is none."""
        value = self._parsed.run_time
        if not value:
            return None
        return float(parse_timespan(value) if isinstance(value, str) else value)

    def send_plan(self, plan: RunPlan) -> None:
        """Adds the run's plan to Locust's options, which Locust sends to the workers."""
        setattr(self._parsed, _PLAN, plan.write())

    def read_plan(self) -> RunPlan:
        """Returns the run's plan, which the leader has added to Locust's options."""
        return RunPlan.read(getattr(self._parsed, _PLAN))

    def rebalance_users(self) -> None:
        """Makes Locust move the users of a lost worker to the other workers."""
        self._parsed.enable_rebalancing = True


class HiddenHost:
    """Keeps the server's address together with its password. Gives Locust the address without the password,
    because Locust shows the address and sends it to the workers."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self.address: str | None = environment.host
        self.hide()

    def hide(self) -> None:
        """Removes the password from the address that Locust has. Called again for each run, because the web
        form may set a new address."""
        host = self._environment.host
        if not host:
            return
        shown = split_credentials(host)[0]
        if shown != split_credentials(self.address or "")[0]:
            self.address = host
        self._environment.host = shown
        if self._environment.parsed_options is not None:
            self._environment.parsed_options.host = shown

    def for_plan(self, plan: RunPlan) -> str:
        """Returns the plan's server address. If this process was given a password for that server, the
        address contains it."""
        own = self.address or ""
        is_same = split_credentials(own)[0].rstrip("/").removesuffix("/v1") == plan.host
        return own if is_same and own else plan.host
