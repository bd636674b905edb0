"""How faithful a replay of recorded sessions was: turns sent late, lengths off, and prefix-cache hits against
what was sent would allow."""

from collections.abc import Sequence

import numpy as np

from analysis.answers.replay import LengthsOff, ReplayAnswer
from analysis.reading.runs import Run
from analysis.statistics.arrays import Bools, Floats


def replay_of(runs: Sequence[Run]) -> ReplayAnswer | None:
    """Returns how faithful the replay was in runs that may be pooled; None if no sessions were replayed."""
    replayed = [(run, run.info.sessions) for run in runs if run.info.sessions is not None]
    if not replayed:
        return None
    infos = [info for _, info in replayed]
    late, prompt, output, recorded_prompt, recorded_output = (
        np.concatenate([getattr(run.requests, name)[run.requests.ok] for run, _ in replayed])
        for name in ("late_s", "prompt_tokens", "output_tokens", "recorded_prompt", "recorded_output")
    )
    is_late = ~np.isnan(late)
    hit_rate, unbounded = _hit_rates([run for run, _ in replayed])
    return ReplayAnswer(
        files=sorted({info.file for info in infos}),
        format=infos[-1].format,
        history=infos[-1].history,
        times=infos[-1].times,
        sessions=infos[-1].sessions,
        too_long=infos[-1].too_long,
        begun_again=sum(info.begun_again for info in infos),
        requests=len(late),
        late=int(is_late.sum()),
        late_p95_s=_percentile(late[is_late]) if is_late.any() else None,
        answers=_lengths_off(output, recorded_output),
        prompts=_lengths_off(prompt, recorded_prompt),
        hit_rate=hit_rate,
        hit_rate_unbounded=unbounded,
    )


def _lengths_off(tokens: Floats, recorded: Floats) -> LengthsOff | None:
    known = ~np.isnan(tokens) & (recorded > 0)
    if not known.any():
        return None
    off = tokens[known] - recorded[known]
    return LengthsOff(
        requests=len(off),
        longer=int((off > 0).sum()),
        shorter=int((off < 0).sum()),
        mean_ratio=float(tokens[known].sum() / recorded[known].sum()),
        off_p95=_percentile(np.abs(off) / recorded[known]),
    )


def _percentile(values: Floats) -> float:
    return float(np.quantile(values, 0.95, method="inverted_cdf"))


def _hit_rates(runs: Sequence[Run]) -> tuple[float | None, float | None]:
    """Returns two shares of prompt tokens: those that the server found in its prefix cache, and those that a
    cache which never evicts would have found of what was sent. Each is None where nothing tells.

    The first comes from the usage of the requests that succeeded; where that tells no hits, from the server's
    counters over the whole of the runs. The second is of the same requests: the counters also count those
    whose answer broke off after it had begun.
    """
    hits = tokens = 0.0
    for run in runs:
        rows = run.requests
        known = rows.ok & ~np.isnan(rows.cached_tokens) & ~np.isnan(rows.prompt_tokens)
        hits += float(rows.cached_tokens[known].sum())
        tokens += float(rows.prompt_tokens[known].sum())
    if hits:
        return hits / tokens, _unbounded(runs, [run.requests.ok for run in runs])
    tokens = 0.0
    for run in runs:
        counters = (run.server.prefix_cache_hits_total, run.server.prefix_cache_queries_total)
        found, asked = (counter[~np.isnan(counter)] for counter in counters)
        if len(found) > 1 and len(asked) > 1:
            hits += float(found[-1] - found[0])
            tokens += float(asked[-1] - asked[0])
    begun = [run.requests.ok | ~np.isnan(run.requests.first_chunk_s) for run in runs]
    return hits / tokens if tokens else None, _unbounded(runs, begun)


def _unbounded(runs: Sequence[Run], counted: Sequence[Bools]) -> float | None:
    """Returns the share that a cache without a limit would find in the requests that count, in whole blocks
    where their size is known. A prompt that the server did not count has its recorded tokens."""
    reusable = tokens = 0.0
    for run, chosen in zip(runs, counted, strict=True):
        rows, block = run.requests, run.info.server.block_size or 1
        prompt = np.where(np.isnan(rows.prompt_tokens), rows.recorded_prompt, rows.prompt_tokens)
        known = chosen & ~np.isnan(rows.reusable_tokens) & (prompt > 0)
        most = np.minimum(rows.reusable_tokens, prompt - 1.0)[known]
        reusable += float((most // block * block).sum())
        tokens += float(prompt[known].sum())
    return reusable / tokens if tokens else None
