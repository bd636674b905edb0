"""Means of TTFT and TPOT of a load in a steady state, by arithmetic: fast enough to fit by. Knows no data."""

import math
from dataclasses import dataclass

from loadtest.model.step_time import PredictedStepTime

ROUNDS = 20
"""Rounds of the fixed point of requests in flight."""
MOST_BUSY = 0.97
"""Largest share of time in which prompts are computed, above which there is no steady state."""


@dataclass(frozen=True, kw_only=True)
class SteadyLoad:
    """A load of requests of one length: closed (`users`) or open (`rate`, requests a second)."""

    prompt: float
    output: float
    users: float | None
    rate: float | None
    max_num_seqs: int
    max_num_batched_tokens: int
    together: bool = True
    """Closed loop: whether all requests begin together, and stay so because they have one length."""


def means_s(steps: PredictedStepTime, load: SteadyLoad, *, computed: float = 1.0) -> tuple[float, float]:
    """Returns the mean TTFT and the mean TPOT, seconds.

    computed: share of each prompt that is not in the prefix cache.
    """
    fresh = max(load.prompt * computed, 1.0)
    if load.rate is not None:
        return _arriving_s(steps, load, load.rate, fresh)
    assert load.users is not None
    if load.together or load.users == 1:
        return _together_s(steps, load, int(load.users))
    rate = load.users / (load.output * steps.decode_s(load.users, load.prompt + load.output / 2))
    for _ in range(ROUNDS):
        # A request meets those of the others.
        ttft_s, tpot_s = _arriving_s(steps, load, rate * (load.users - 1) / load.users, fresh)
        rate = (rate + load.users / (ttft_s + (load.output - 1) * tpot_s)) / 2
    return ttft_s, tpot_s


def _arriving_s(steps: PredictedStepTime, load: SteadyLoad, rate: float, fresh: float) -> tuple[float, float]:
    """Requests arrive one by one; each prompt is computed in steps of its own, beside all decodes."""
    context = load.prompt + load.output / 2
    chunks = math.ceil(fresh / load.max_num_batched_tokens)
    first = load.prompt - fresh / 2
    in_flight = rate * load.output * steps.decode_s(1.0, context)
    for _ in range(ROUNDS):
        decode_s = steps.decode_s(max(in_flight, 1.0), context)
        prompt_s = chunks * steps.seconds(
            decodes=in_flight,
            prefills=1,
            kv_tokens=in_flight * context,
            prefill_tokens=fresh / chunks,
            pairs=fresh / chunks * first,
        )
        busy = min(rate * prompt_s, MOST_BUSY)
        tpot_s = 1.0 / ((1.0 - busy) / decode_s + rate * chunks)
        in_flight = (in_flight + min(rate * (load.output - 1) * tpot_s, load.max_num_seqs)) / 2
    under_way_s = min(1.0, in_flight) * (busy * prompt_s / chunks + (1.0 - busy) * decode_s) / 2
    queue_s = busy / (2 * (1.0 - busy)) * prompt_s
    return steps.outside_s(load.prompt) + under_way_s + queue_s + prompt_s, tpot_s


def _together_s(steps: PredictedStepTime, load: SteadyLoad, users: int) -> tuple[float, float]:
    """Requests of equal length begin together, as benchmark tools send them, and stay together."""
    prompt, budget = load.prompt, float(load.max_num_batched_tokens)
    now_s, decodes, left, firsts_s = 0.0, 0, [prompt] * min(users, load.max_num_seqs), list[float]()
    while left:
        room, ended, tokens, pairs = budget - decodes, 0, 0.0, 0.0
        while room > 0 and ended < len(left):
            chunk = min(left[ended], room)
            pairs += chunk * (prompt - left[ended] + chunk / 2)
            left[ended] -= chunk
            room, tokens = room - chunk, tokens + chunk
            if left[ended] > 0:
                break
            ended += 1
        now_s += steps.seconds(
            decodes=decodes,
            prefills=max(ended, 1),
            kv_tokens=decodes * prompt,
            prefill_tokens=tokens,
            pairs=pairs,
        )
        firsts_s += [now_s] * ended
        decodes, left = decodes + ended, left[ended:]
    decode_s = steps.decode_s(decodes, prompt + load.output / 2)
    mean_s = sum(firsts_s) / len(firsts_s)
    waited_s = now_s - sorted(firsts_s)[len(firsts_s) // 2]
    return steps.outside_s(prompt) + mean_s, decode_s + waited_s / (load.output - 1)
