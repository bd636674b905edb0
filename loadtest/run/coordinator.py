"""The leader's part of one run: preflight (the inspection of the server before the load), the run folder, the
schedule of levels and the samples of the server's metrics. Knows no Locust."""

import asyncio
import importlib.metadata
import logging
import os
import platform
import time
import uuid
from collections import Counter
from pathlib import Path

import aiohttp

from loadtest.client.target import Target, make_target
from loadtest.clock import unix_now
from loadtest.errors import InputError
from loadtest.record import (
    SERVER_FILE,
    ArrivalsInfo,
    ClientInfo,
    Outcome,
    OwnPromptsInfo,
    RunInfo,
    ServerSample,
    UserClass,
    WorkerInfo,
)
from loadtest.run.advisor import Advisor
from loadtest.run.lasting import keep_running
from loadtest.run.live.absence import REPORTED_S, AbsenceWatch
from loadtest.run.live.level import LiveLevel, in_words
from loadtest.run.live.line import describe
from loadtest.run.live.refusal import RefusalWatch
from loadtest.run.loop import LoopThread
from loadtest.run.messages import RunPlan, WorkerReport
from loadtest.run.open_loop import planned_arrivals
from loadtest.run.sessions.ledger import SessionLedger, session_lines
from loadtest.run.shipping import Receiver
from loadtest.run.sink import FLUSH_S, RowFile, create_run_folder, new_run_id, write_run_info
from loadtest.server.gpu_sensors import NvmlGpus
from loadtest.server.preflight import Preflight, inspect_server, preflight_summary
from loadtest.server.scrape import Scraper
from loadtest.settings import Settings
from loadtest.workload.conversations import usable_context
from loadtest.workload.own_prompts import OwnPrompts
from loadtest.workload.prompts import read_prompts

logger = logging.getLogger(__name__)

MIN_LEVEL_S = 0.5
"""Seconds that a level lasts at least. A shorter one, made while users move between workers, is not kept."""
SAVE_S = 5.0
"""Seconds after which `run.json` is written again while a level goes on."""


class _CounterWatch:
    """Notices that an engine's counters have begun anew, because its process was started again."""

    def __init__(self) -> None:
        self._last: dict[str | None, float] = {}
        self._starts: dict[str | None, set[float]] = {}

    def has_restarted(self, sample: ServerSample) -> bool:
        """Takes the next sample and returns whether its engine was started again since the one before. Where
        the server states when it was started, each start counts once: a load balancer may show several
        processes in turn."""
        if sample.error is not None:
            return False
        engine, total = sample.engine, sample.generation_tokens_total
        if sample.started_unix_s is not None:
            starts = self._starts.setdefault(engine, set())
            is_new = bool(starts) and sample.started_unix_s not in starts
            starts.add(sample.started_unix_s)
            return is_new
        before = self._last.get(engine)
        if total is not None:
            self._last[engine] = total
        return before is not None and total is not None and total < before


class ServerFollower:
    """Samples the server's metrics until the run ends. Each sample gives one row for each engine of the
    server. Methods run on the event loop's thread; other threads may set `level`."""

    def __init__(self, scraper: Scraper, rows: RowFile, *, sample_s: float) -> None:
        self.level: LiveLevel | None = None
        """The level that new samples are added to; None between levels."""
        self._scraper = scraper
        self._rows = rows
        self._sample_s = sample_s
        self._counters = _CounterWatch()
        self._following: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        await self._sample()  # the baseline: after the warm-up, before the first counted request
        following = keep_running(self._follow, what="Sampling the server's metrics")
        self._following = asyncio.get_running_loop().create_task(following)

    async def end(self) -> None:
        """Takes a last sample and closes the session with the server."""
        if self._following is not None:
            self._following.cancel()
        try:
            await self._scraper.settle()
            await self._sample()
        except Exception:
            logger.exception("The last sample of the server's metrics is missing.")
        await self._scraper.close()

    async def _sample(self) -> None:
        for row in await self._scraper.sample():
            self._take(row)

    async def _follow(self) -> None:
        try:
            await self._scraper.follow(seconds=self._sample_s, take=self._take)
        except Exception as error:
            self._rows.append(ServerSample(unix_s=unix_now(), error=f"not sampled: {type(error).__name__}"))
            raise

    def _take(self, row: ServerSample) -> None:
        self._rows.append(row)
        has_restarted, level = self._counters.has_restarted(row), self.level
        if level is not None:
            level.add_sample(row)
            level.restarted = level.restarted or has_restarted


class Coordinator:
    """Leads one run, from the inspection of the server to the last row. Its methods must be called from
    greenlets of the main thread."""

    def __init__(self, *, host: str | None, settings: Settings, scenario: str, loop: LoopThread) -> None:
        """Inspects the server and opens the run folder. Raises InputError."""
        self.settings = settings
        self.target: Target = make_target(host, settings)
        self.level: LiveLevel | None = None
        """The level under way; None between levels."""
        self._ended: list[LiveLevel] = []
        self.advisor: Advisor | None = None
        """The process that judges the levels so far; None where none was started."""
        self.absences = AbsenceWatch()
        self.refusals = RefusalWatch()
        self.succeeded = 0
        """Number of requests that succeeded, in the whole run."""
        self.failures: Counter[str] = Counter()
        """Failed requests of the whole run by kind: the HTTP status, or the outcome."""
        planned_arrivals(settings)  # raises InputError before the server is asked anything
        self.sessions = None if settings.sessions is None else SessionLedger(settings)
        """The recorded sessions that are replayed; None without any."""
        self._loop = loop
        nonce = uuid.uuid4().hex[:8]
        self.preflight, scraper = loop.run(inspect_server(self.target, settings, nonce=nonce))
        now = unix_now()
        try:
            if self.sessions is not None:
                self.sessions.fit(usable_context(self.preflight.server.max_model_len))
            self.arrivals_count, self.arrivals_s = _extent(settings, self.sessions)
            """Open loop: number of arrivals, and seconds within which they begin."""
            self.folder = _make_folder(
                settings.reports_dir, new_run_id(model=self.preflight.model, unix_s=now)
            )
        except InputError:
            loop.run(scraper.close())
            raise
        self.info = _run_info(self.folder.name, self.preflight, self.target, settings, scenario, now)
        salted = settings.prompts is not None or (self.sessions is not None and self.sessions.has_text)
        self.plan = RunPlan(
            run_id=self.folder.name,
            folder=str(self.folder.resolve()),
            host=self.target.shown,
            model=self.preflight.model,
            scenario=scenario,
            max_model_len=self.preflight.server.max_model_len,
            scale=self.preflight.scale,
            nonce=nonce,
            cache_salt=nonce if salted and self.preflight.takes_cache_salt else None,
            classes=settings.classes,
            settings=settings.shared(),
        )
        if self.sessions is not None:
            self.info.sessions = self.sessions.info(kept_apart=self.preflight.takes_cache_salt)
            for warning in self.sessions.warnings(self.info.sessions):
                self.warn(warning)
        self.save()
        self.receiver = Receiver(self.folder)
        self._samples = RowFile(self.folder / SERVER_FILE)
        self._follower = ServerFollower(scraper, self._samples, sample_s=settings.sample_s)
        loop.run(self._follower.begin())
        self._jobs = [loop.every(FLUSH_S, self._samples.flush)]
        if isinstance(scraper.gpus, NvmlGpus):
            self._jobs.append(loop.every(settings.sample_s, scraper.gpus.refresh))

    def begin_level(self, users: int) -> None:
        """Ends the current level, if there is one, and begins a new level; all of its users must have
        started."""
        self.end_level()
        now = unix_now()
        settings = self.settings
        self._set_level(
            LiveLevel(
                users=users,
                start_unix_s=now,
                settle_s=settings.settle_s,
                slo=settings.slo,
                lower=[level for level in self._ended if level.users is not None and level.users < users],
                classes=self.info.classes or (),
            )
        )
        self.info.schedule.append((now, now, users))
        self.save()

    def begin_arrivals(self, start_unix_s: float) -> None:
        """Begins an open loop. The due times of its requests count from `start_unix_s`."""
        settings = self.settings
        self._set_level(
            LiveLevel(
                users=None,
                start_unix_s=start_unix_s,
                settle_s=0,
                slo=settings.slo,
                classes=self.info.classes or (),
            )
        )
        self.info.arrivals = ArrivalsInfo(
            law=settings.arrivals,
            trace=settings.trace.name if settings.trace else None,
            trace_speed=settings.trace_speed,
            start_unix_s=start_unix_s,
            end_unix_s=start_unix_s,
        )
        self.save()

    def end_level(self) -> None:
        if self.level is None:
            return
        if self.level.users is not None and self.level.end_unix_s - self.level.start_unix_s < MIN_LEVEL_S:
            self.info.schedule.pop()  # users were moved between workers once more
        else:
            logger.info(describe(self.level))
            self._ended.append(self.level)
        self._set_level(None)
        self.save()

    def keep_level(self, until_unix_s: float) -> None:
        """Sets the end of the current level to `until_unix_s`, and writes `run.json` if the last write is
        more than SAVE_S seconds ago. Does nothing between levels."""
        if self.level is None:
            return
        self.level.end_unix_s = max(self.level.start_unix_s, until_unix_s)
        if self.info.arrivals is not None:
            last = self.info.arrivals.start_unix_s + self.arrivals_s
            if self.sessions is not None:  # their later turns are due after the last session has begun
                last = self.level.end_unix_s
            self.info.arrivals.end_unix_s = min(self.level.end_unix_s, last)
        else:
            start, _, users = self.info.schedule[-1]
            self.info.schedule[-1] = (start, self.level.end_unix_s, users)
        if time.monotonic() - self._saved > SAVE_S:
            self.save()

    def take_report(self, report: WorkerReport) -> None:
        """Adds requests that have ended, and what a worker noticed of itself, to the counts of the run and of
        the current level."""
        for row in report.live:
            self.absences.add(row)
            self.refusals.add(row)
            self.succeeded += row.outcome == Outcome.OK
            if row.failed:
                self.failures[row.kind] += 1
            if self.level is not None:
                self.level.add(row)
        if report.answering is not None:
            self.absences.hear(*report.answering)
        if self.level is not None and report.health is not None:
            lag_s, cpu = report.health
            sent_unix_s = report.unix_s - (report.clock_offset_s or 0.0)
            self.level.add_health(sent_unix_s, report.worker, lag_s=lag_s, cpu=cpu)

    def watch_server(self, *, ended: bool = False) -> None:
        """Judges whether the server answers, and notes its absences in the run's record. ended: whether all
        requests have ended, so that nothing more will be reported."""
        now = unix_now()
        self.absences.look(now + REPORTED_S if ended else now)
        count = len(self.info.away)
        self.info.away = self.absences.spans(now)
        if len(self.info.away) != count:
            self.save()

    def shortfall(self) -> str | None:
        """Returns a sentence that says why this run cannot count as done although its plan has ended; None
        if it can."""
        since = self.absences.since_unix_s
        if since is not None:
            kinds = in_words(self.absences.kinds)
            return f"The server was away when the run ended: no request was answered any more ({kinds})."
        if self.failures and not self.succeeded:
            return f"No request succeeded: {in_words(self.failures)}."
        last = self._ended[-1] if self._ended else None
        if last is not None and last.is_refused():
            return f"No request of the last level succeeded: {last.kinds()}."
        return None

    def note_shortfall(self, sentence: str | None) -> None:
        """Writes into `run.json` why the run does not hold what was planned; None: it does."""
        if sentence is not None:
            self.info.shortfall = sentence
            self.save()

    def warn(self, warning: str) -> None:
        """Logs a warning and adds it to the run's warnings. Does nothing if the run already has this
        warning."""
        if warning not in self.info.warnings:
            logger.warning(warning)
            self.info.warnings.append(warning)

    def note_sessions_again(self) -> None:
        """Notes, with a warning, that the file of recorded sessions was begun again if it was."""
        if self.sessions is None or self.info.sessions is None or not self.sessions.begun_again:
            return
        self.info.sessions.begun_again = self.sessions.begun_again
        text = "the same text" if self.sessions.has_text else "other text of the same lengths"
        self.warn(
            f"The {self.sessions.begins:,} sessions of {self.info.sessions.file} were used up and begun "
            f"again from the file's start, with {text}."
        )

    def finish(
        self, *, workers: list[WorkerInfo], clipped: int, prompts_used: int, sessions_cut: int = 0
    ) -> None:
        """Takes the last sample of the server, closes everything and completes `run.json`."""
        self.end_level()
        if self.info.own_prompts is not None:
            self.info.own_prompts.used = prompts_used
            if prompts_used > self.info.own_prompts.count:
                self.warn(_prompts_came_again(self.info.own_prompts))
        if clipped:
            self.warn(f"{clipped} drawn lengths did not fit into the model's context and were clipped.")
        if sessions_cut:
            self.warn(
                f"{sessions_cut:,} sessions ended early, because their history as the server counts it "
                "filled the model's context."
            )
        if self.sessions is not None:
            self.sessions.close()
        self.watch_server(ended=True)
        self._loop.run(self._follower.end())
        for job in self._jobs:
            job.stop()
        if lost := self._samples.close():
            self.warn(f"{lost} samples of the server could not be written.")
        self.info.workers = workers
        self.info.ended_unix_s = unix_now()
        self.save()

    def save(self) -> None:
        """Writes `run.json` with what is known now. A failure is logged; the next call tries again."""
        self._saved = time.monotonic()
        try:
            write_run_info(self.folder, self.info)
        except OSError as error:
            logger.error("run.json cannot be written (%s); it is tried again.", error)  # noqa: TRY400

    def _set_level(self, level: LiveLevel | None) -> None:
        self.level = self._follower.level = level


def _extent(settings: Settings, sessions: SessionLedger | None) -> tuple[int, float]:
    """Returns two numbers of an open loop: how many requests it sends, or sessions it begins, and how many
    seconds they take together."""
    if sessions is not None:
        return sessions.extent() if settings.open_loop else (0, 0.0)
    count, last_s = 0, 0.0
    for arrival in planned_arrivals(settings):
        count, last_s = count + 1, arrival.due_s
    return count, last_s if settings.trace else settings.level_s


def _make_folder(reports_dir: Path, run_id: str) -> Path:
    try:
        return create_run_folder(reports_dir, run_id)
    except OSError as error:
        reason = error.strerror
        raise InputError(f"--reports-dir: {reports_dir} cannot hold a run folder ({reason}).") from None


def _run_info(
    run_id: str, preflight: Preflight, target: Target, settings: Settings, scenario: str, now: float
) -> RunInfo:
    return RunInfo(
        run_id=run_id,
        model=preflight.model,
        scenario=scenario,
        host=target.shown,
        started_unix_s=now,
        settings=settings.public(),
        server=preflight.server,
        gpu=preflight.gpu,
        client=ClientInfo(
            python=platform.python_version(),
            locust=importlib.metadata.version("locust"),
            aiohttp=aiohttp.__version__,
            cpu_count=os.cpu_count() or 1,
        ),
        classes=None if settings.workload is None else settings.classes,
        own_prompts=_own_prompts_info(settings, preflight),
        warnings=list(preflight.warnings),
    )


def _own_prompts_info(settings: Settings, preflight: Preflight) -> OwnPromptsInfo | None:
    if settings.prompts is None:
        return None
    prompts = OwnPrompts(read_prompts(settings.prompts), seed=settings.seed)
    return OwnPromptsInfo(
        count=len(prompts),
        hit_fraction=prompts.hit_fraction() if settings.turns == 1 else None,
        kept_apart=preflight.takes_cache_salt,
    )


def _prompts_came_again(own: OwnPromptsInfo) -> str:
    return (
        f"The {own.count} prompts of the file were used up: {own.used} requests sent each "
        f"{own.used / own.count:.1f} times on average, in a new order each time. What comes again may be in "
        "the prefix cache, which your own users would find less often: give a file with more prompts."
    )


def _prompt_lines(own: OwnPromptsInfo | None) -> list[str]:
    if own is None:
        return []
    shared = "" if own.hit_fraction is None else f"; {own.hit_fraction:.0%} of their text is shared"
    apart = (
        "kept apart from earlier runs in the server's prefix cache (cache_salt)"
        if own.kept_apart
        else "an earlier run with the same prompts may have left them in the server's prefix cache"
    )
    return [f"prompts  {own.count} of your own, none twice before all were sent{shared}; {apart}"]


def _class_lines(classes: list[UserClass] | None) -> list[str]:
    if classes is None:
        return []
    total = sum(each.weight for each in classes)
    shares = ", ".join(f"{each.name} {each.weight / total:.0%}" for each in classes)
    return [f"classes  {shares} of the users"]


def opening_lines(coordinator: Coordinator, *, plan: str) -> list[str]:
    """Builds the lines that are shown before the load begins."""
    return [
        *preflight_summary(coordinator.preflight, coordinator.target),
        f"plan     {plan}",
        *_class_lines(coordinator.info.classes),
        *_prompt_lines(coordinator.info.own_prompts),
        *session_lines(coordinator.info.sessions),
        f"rows     {coordinator.folder}",
    ]
