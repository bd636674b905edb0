"""What lies between the load test and the engine: the client's times beside those of the engine itself."""

from analysis.evidence.evidence import Evidence
from analysis.levels.level import Level
from analysis.notes import DelayOutsideEngine, GatheredChunks, Note

MIN_DELAY_S = 0.03
"""Mean delay outside the engine, in seconds, that is worth a word."""
MIN_DELAY_SHARE = 0.25
"""Share of the client's mean TTFT that the delay must be as well."""


def way_warnings(evidence: Evidence) -> list[Note]:
    """Returns notes on a way that gathers chunks, or that delays the first token, at the level where it does
    so most; empty where it does neither or where nothing tells."""
    trusted = [level for level in evidence.levels if level.trusted]
    gathered = [level for level in trusted if level.requests.gathered]
    if gathered:
        worst = min(gathered, key=lambda level: level.requests.arrivals_per_chunk)
        return [
            GatheredChunks(
                users=worst.users,
                arrivals_per_chunk=worst.requests.arrivals_per_chunk,
                engine_tpot_s=_known(worst.server.tpot_mean_s),
                engine_ttft_s=_known(worst.server.ttft_mean_s),
            )
        ]
    delayed = [level for level in trusted if _is_delayed(level)]
    if not delayed:
        return []
    worst = max(delayed, key=delay_s)
    return [
        DelayOutsideEngine(
            users=worst.users,
            ttft_s=worst.requests.ttft_mean_s,
            engine_ttft_s=worst.server.ttft_mean_s,
            duration_s=worst.requests.e2e_mean_s,
            engine_duration_s=_known(worst.server.e2e_mean_s),
        )
    ]


def delay_s(level: Level) -> float:
    """Returns the mean TTFT of the clients minus that of the engine, in seconds; nan where one is unknown."""
    return level.requests.ttft_mean_s - level.server.ttft_mean_s


def _is_delayed(level: Level) -> bool:
    return delay_s(level) > max(MIN_DELAY_S, MIN_DELAY_SHARE * level.requests.ttft_mean_s)


def _known(value: float) -> float | None:
    return value if value >= 0.0 else None
