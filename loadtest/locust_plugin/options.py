"""What a person asked of Locust, on the command line or in the web form. Knows no run."""

from argparse import Namespace

from locust.env import Environment
from locust.util.timespan import parse_timespan

from loadtest.client.target import split_credentials
from loadtest.run.messages import RunPlan
from loadtest.settings import Settings, resolve_settings

_PLAN = "seatcount_plan"  # travels with Locust's parsed options in each spawn message


class LocustOptions:
    """Locust's parsed options. The web form overwrites them; headless, Locust itself does, so that the flags
    are read at the start."""

    def __init__(self, parsed: Namespace) -> None:
        self.headless = bool(parsed.headless)
        self.processes = int(parsed.processes or 0)
        self._parsed = parsed
        self._users_flag: int | None = parsed.num_users
        self._spawn_rate_flag: float | None = parsed.spawn_rate

    def settings(self) -> Settings:
        """Builds the settings of the run that begins. Raises InputError."""
        return resolve_settings(vars(self._parsed))

    def given(self, setting: str) -> bool:
        """Whether a flag or the web form says something of this setting."""
        return getattr(self._parsed, setting) not in (None, "")

    @property
    def users(self) -> int | None:
        """The users of `-u` or of the web form."""
        users: int | None = self._users_flag if self.headless else self._parsed.num_users
        return users

    @property
    def users_flag_given(self) -> bool:
        """Whether there is a `-u`; the web form always has a number of users."""
        return self.headless and self._users_flag is not None

    @property
    def spawn_rate(self) -> float | None:
        """Users to start a second: `-r` or the web form."""
        rate: float | None = self._spawn_rate_flag if self.headless else self._parsed.spawn_rate
        return rate

    @property
    def run_time_s(self) -> float | None:
        """The time limit: `-t` or the web form."""
        value = self._parsed.run_time
        if not value:
            return None
        return float(parse_timespan(value) if isinstance(value, str) else value)

    def send_plan(self, plan: RunPlan) -> None:
        """Lets the plan travel to the workers with Locust's options."""
        setattr(self._parsed, _PLAN, plan.write())

    def read_plan(self) -> RunPlan:
        """The plan of this run, once the leader has sent it."""
        return RunPlan.read(getattr(self._parsed, _PLAN))

    def rebalance_users(self) -> None:
        """Lets Locust give the users of a lost worker to the others."""
        self._parsed.enable_rebalancing = True


class HiddenHost:
    """The server's address with its password. Locust, which shows and sends the host, has it without."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self.address: str | None = environment.host
        self.hide()

    def hide(self) -> None:
        """Takes the password out of Locust's host; again after the web form, which may bring a new one."""
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
        """The plan's address, with this process's own password where it has one for that server."""
        own = self.address or ""
        is_same = split_credentials(own)[0].rstrip("/").removesuffix("/v1") == plan.host
        return own if is_same and own else plan.host
