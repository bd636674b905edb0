"""Pure functions on arrays: TTFT, TTFA, E2E, TPOT, decode rate, and sums over a window.

TTFA is the time to the first content of the answer, after any reasoning. No function reads a file.
"""

import numpy as np

from analysis.statistics.arrays import Bools, Floats


def ttft_s(*, sent_s: Floats, first_chunk_s: Floats) -> Floats:
    """Returns the seconds between handing the request to the socket and the first content. Shape (n,)."""
    return first_chunk_s - sent_s


def ttfa_s(*, sent_s: Floats, first_answer_s: Floats) -> Floats:
    """Returns the seconds between handing the request to the socket and the first answer. Shape (n,).

    The answer is the first content that is not reasoning.
    """
    return first_answer_s - sent_s


def e2e_s(*, sent_s: Floats, end_s: Floats) -> Floats:
    """Returns the seconds between sending the request and the end of the stream. Shape (n,)."""
    return end_s - sent_s


def tpot_s(
    *, first_chunk_s: Floats, last_chunk_s: Floats, output_tokens: Floats, first_chunk_tokens: Floats
) -> Floats:
    """Returns the seconds per output token of each request. Shape (n,).

    They are (time from the first to the last chunk) / (tokens after the first chunk). nan where fewer than
    two tokens came, or none after the first chunk.
    """
    later = output_tokens - first_chunk_tokens
    defined = (output_tokens >= 2) & (later >= 1)
    return np.where(defined, (last_chunk_s - first_chunk_s) / np.where(defined, later, 1.0), np.nan)


def decode_tok_s(tpot: Floats) -> Floats:
    """Returns the decode rate of each request in tokens a second; nan where TPOT is nan or 0. Shape (n,)."""
    return np.where(tpot > 0, 1.0 / np.where(tpot > 0, tpot, 1.0), np.nan)


def chunks_are_tokens(*, chunks: Floats, output_tokens: Floats) -> Bools:
    """Returns, for each request, whether it has as many chunks as output tokens. Shape (n,).

    If so, each chunk carried one token, and the gaps between chunks are inter-token latencies (ITL).
    """
    return np.equal(chunks, output_tokens)


def overlap_s(*, begin_unix_s: Floats, end_unix_s: Floats, window: tuple[float, float]) -> Floats:
    """Returns the seconds of each interval that lie inside the window. Shape (n,)."""
    inside: Floats = np.minimum(end_unix_s, window[1]) - np.maximum(begin_unix_s, window[0])
    return np.clip(inside, 0.0, None)


def mean_in_flight(*, begin_unix_s: Floats, end_unix_s: Floats, window: tuple[float, float]) -> float:
    """Returns the mean number of requests in flight over the window."""
    spent = overlap_s(begin_unix_s=begin_unix_s, end_unix_s=end_unix_s, window=window)
    return float(np.nansum(spent)) / (window[1] - window[0])


def tokens_by(instant_unix_s: float, *, first_unix_s: Floats, last_unix_s: Floats, tokens: Floats) -> Floats:
    """Returns how many output tokens of each request had come by an instant. Shape (n,).

    One token is taken to come with the first chunk, and the others evenly from the first to the last chunk.
    """
    span = np.maximum(last_unix_s - first_unix_s, 1e-9)
    share = np.clip((instant_unix_s - first_unix_s) / span, 0.0, 1.0)
    arrived = 1.0 + (tokens - 1.0) * share
    return np.where(instant_unix_s >= first_unix_s, arrived, 0.0)
