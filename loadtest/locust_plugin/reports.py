"""What the leader knows of the workers (the processes that run users). Knows no coordinator."""

from locust.runners import MasterRunner, Runner

from loadtest.clock import unix_now
from loadtest.record import WorkerInfo
from loadtest.run.messages import WorkerReport

SILENT_S = 2.5
"""Seconds without a report after which nobody knows whether a worker still runs its users."""
LOST_S = 10.0
"""Seconds without a report after which a worker counts as lost and is not waited for."""


def worker_names(runner: Runner) -> tuple[str, ...]:
    """Returns the names of the processes that run users now. A name is the worker's index as text."""
    if not isinstance(runner, MasterRunner):
        return ("0",)
    present = [*runner.clients.ready, *runner.clients.spawning, *runner.clients.running]
    return tuple(str(index) for index in sorted(runner.worker_indexes[client.id] for client in present))


def worker_ids(runner: Runner) -> tuple[str | None, ...]:
    """Returns the ids to which messages for the processes that run users are sent, in the order of their
    names. None stands for the only process."""
    if not isinstance(runner, MasterRunner):
        return (None,)
    present = [*runner.clients.ready, *runner.clients.spawning, *runner.clients.running]
    return tuple(client.id for client in sorted(present, key=lambda each: runner.worker_indexes[each.id]))


class WorkerReports:
    """Keeps the last report of each worker of a run, and the time at which it came."""

    def __init__(self) -> None:
        self._reports: dict[str, WorkerReport] = {}
        self._heard_unix_s: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._reports)

    def clear(self) -> None:
        self._reports.clear()
        self._heard_unix_s.clear()

    def take(self, report: WorkerReport) -> None:
        self._reports[report.worker] = report
        self._heard_unix_s[report.worker] = unix_now()

    def audible(self) -> list[WorkerReport]:
        """Returns the last reports of the workers that are not lost."""
        now = unix_now()
        return [report for name, report in self._reports.items() if now - self._heard_unix_s[name] < LOST_S]

    def heard_until(self, workers: tuple[str, ...]) -> float:
        """Returns the time (Unix seconds) until which all of `workers` surely ran their users. If no worker
        is silent (SILENT_S without a report), that is now. If some are silent, the result is the earliest
        of their last reports."""
        now = unix_now()
        heard = [self._heard_unix_s.get(name, 0.0) for name in workers]
        return min((unix_s for unix_s in heard if now - unix_s > SILENT_S), default=now)

    @property
    def arriving(self) -> bool:
        """Open loop: whether some of its requests have not begun yet. True before the first report."""
        return not self._reports or any(report.arriving for report in self.audible())

    @property
    def clipped(self) -> int:
        """Number of request lengths that were clipped, because they did not fit into the model's context."""
        return sum(report.clipped for report in self._reports.values())

    @property
    def sessions_cut(self) -> int:
        """Number of replayed sessions that the model's context has cut, as the server counts."""
        return sum(report.sessions_cut for report in self._reports.values())

    @property
    def prompts_used(self) -> int:
        """Number of the person's own prompts that were sent."""
        return sum(report.prompts_used for report in self._reports.values())

    @property
    def undelivered_bytes(self) -> int:
        """Bytes of rows that workers on other machines have not delivered yet."""
        return sum(report.undelivered_bytes for report in self._reports.values())

    def losses(self) -> str | None:
        """Returns a sentence that says which rows are missing in the run folder; None if none are known to
        be."""
        unwritten = sum(report.lost_rows for report in self._reports.values())
        if unwritten:
            return f"{unwritten:,} rows could not be written and are lost."
        missing = [report.worker for report in self._reports.values() if _is_undelivered(report)]
        if missing:
            return f"Rows are missing: worker {', '.join(sorted(missing))} did not deliver all of its rows."
        return None

    def workers(self) -> list[WorkerInfo]:
        """Builds the list of workers for `run.json`, with the clock offset of each."""
        return [
            WorkerInfo(name=name, clock_offset_s=None if report.shares_disk else report.clock_offset_s)
            for name, report in sorted(self._reports.items())
        ]

    def warnings(self, *, processes: int) -> list[str]:
        """Returns the warnings about workers that `run.json` will hold. processes: number of workers that
        `--processes` asked for; 0 or less if unknown."""
        warnings = [
            _undelivered(report.worker, shares_disk=report.shares_disk)
            for report in self._reports.values()
            if not report.stopped
        ]
        if 0 < processes < len(self._reports):
            warnings.insert(
                0,
                f"{len(self._reports)} workers took part and --processes is {processes}: workers of "
                "another test have joined (same master port).",
            )
        return warnings


def _is_undelivered(report: WorkerReport) -> bool:
    return not report.stopped and not report.shares_disk


def _undelivered(worker: str, *, shares_disk: bool) -> str:
    if shares_disk:
        return f"Worker {worker} was lost: its last second of rows may be missing."
    return (
        f"Worker {worker} did not deliver all of its rows: copy requests-{worker}.jsonl and "
        f"client-{worker}.jsonl from its machine over those in this folder."
    )
