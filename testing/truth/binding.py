"""Random deployments in virtual time of which the binding wall was chosen: TTFT, errors, time limits,
throughput or slots.

Each kind has a hundred numbers of its own. Limits and objectives are read off a short simulation at the
number of users at which they shall bind, because only that tells what is strict for the deployment drawn.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from analysis.statistics.arrays import Floats
from analysis.virtual.run import VirtualFigures, simulate_users
from analysis.virtual.service import CLIENT_TURNAROUND_S, ChatBehaviour, Service
from loadtest.record import Slo
from loadtest.simulator.gateway import GatewayLimits
from testing.truth.deployments import (
    BLOCK_TOKENS,
    VirtualDeployment,
    deployment,
    drawn_lengths,
    log_uniform,
    random_engine,
    tokens_held,
)

Kind = Literal["ttft", "errors", "timeouts", "throughput", "max_num_seqs"]
FIRST, EACH = 600, 100
KINDS: tuple[Kind, ...] = ("ttft", "errors", "timeouts", "throughput", "max_num_seqs")
"""Deployments from FIRST + EACH * i on are of the i-th kind."""
PILOT_REQUESTS = 2500
LOOSE = 2.5  # times what is seen at the wall: an objective that shall not bind
ACCEPTS_WAITING = Slo(preempted_fraction=1e3, kv_blocked_fraction=0.999)
"""Objectives of people who accept preemptions and waits for memory, as long as the answers are in time."""
_MALFORMED = 0.15  # share of the deployments in which some requests are refused for what they ask
_THINK = 0.4  # share of the deployments whose users think


def numbered_deployment(number: int) -> VirtualDeployment:
    """Draws the deployment with this number: of any kind below FIRST, else of the kind chosen for it."""
    return deployment(number) if number < FIRST else bound_deployment(number)


def bound_deployment(number: int) -> VirtualDeployment:
    """Draws a deployment of the kind that its number belongs to. The number is the seed.

    Raises ValueError for a number that belongs to no kind.
    """
    place = (number - FIRST) // EACH
    if not 0 <= place < len(KINDS):
        raise ValueError(f"No kind of deployment has the number {number}.")
    return _DRAWS[KINDS[place]](number, random.Random(f"bound/{number}"))


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """A service without limits, and the number of users at which something shall bind."""

    number: int
    service: Service
    users: int
    traits: dict[str, float]

    def limited(
        self, *, kind: Kind, slo: Slo, service: Service | None = None, **traits: float
    ) -> VirtualDeployment:
        return VirtualDeployment(
            number=self.number,
            service=service or self.service,
            slo=slo,
            traits=self.traits | {"aim": self.users} | traits,
            kind=kind,
        )


class _Range(NamedTuple):
    """Bounds between which a value is drawn, evenly in its logarithm."""

    low: float
    high: float

    def draw(self, rng: random.Random) -> float:
        return log_uniform(rng, self.low, self.high)


_PROMPT, _OUTPUT, _FIT, _SHARE = _Range(40, 800), _Range(20, 150), _Range(15, 80), _Range(0.15, 0.65)


def _draw(
    number: int,
    rng: random.Random,
    *,
    prompt: _Range = _PROMPT,
    output: _Range = _OUTPUT,
    fit: _Range = _FIT,
    share: _Range = _SHARE,
    think: float = _THINK,
    most_output_cv: float = 1.1,
) -> _Drawn:
    """Draws an engine, people and the users to aim at: a share of those that fit into the pool."""
    speed = random_engine(rng)
    prompts, prompt_cv = prompt.draw(rng), rng.uniform(0.1, 1.0)
    outputs, output_cv = output.draw(rng), rng.uniform(0.15, most_output_cv)
    pairs = np.column_stack(
        [drawn_lengths(number, 0, prompts, prompt_cv), drawn_lengths(number, 1, outputs, output_cv)]
    )
    held = tokens_held(pairs)
    users_fit = fit.draw(rng)
    longest = int(pairs.sum(axis=1).max())
    engine = replace(
        speed,
        num_gpu_blocks=1 + -(-max(math.ceil(users_fit * held), longest) // BLOCK_TOKENS),
        max_model_len=longest,
        enable_prefix_caching=False,
    )
    in_flight = max(users_fit * share.draw(rng), 3.0)
    per_user_s = engine.step_per_seq_s + engine.step_per_kv_token_s * held
    step_s = engine.step_base_s + in_flight * (per_user_s + engine.prefill_per_token_s * prompts / outputs)
    think_s = outputs * step_s * log_uniform(rng, 0.3, 4.0) if rng.random() < think else 0.0
    malformed = rng.uniform(0.01, 0.1) if rng.random() < _MALFORMED else 0.0
    pauses_s = np.random.default_rng([number, 2]).exponential(think_s, 5000 if think_s else 1)
    service = Service(
        engine=engine,
        chatting=ChatBehaviour(
            conversations=[[(int(s), int(o))] for s, o in pairs], pauses_s=CLIENT_TURNAROUND_S + pauses_s
        ),
        gateway=GatewayLimits(malformed_fraction=malformed) if malformed else None,
    )
    return _Drawn(
        number=number,
        service=service,
        users=round(in_flight * (1.0 + think_s / (outputs * step_s))),
        traits={
            "prompt": prompts,
            "prompt_cv": prompt_cv,
            "output": outputs,
            "output_cv": output_cv,
            "shared": 0,
            "think_s": think_s,
            "step_s": step_s,
            "fit": users_fit,
            "slots": engine.max_num_seqs,
            "malformed": malformed,
        },
    )


def _pilot(drawn: _Drawn, users: float) -> tuple[VirtualFigures, Floats]:
    """Simulates the service without limits. Returns its figures, and the request durations, seconds."""
    run = simulate_users(drawn.service, max(round(users), 1), requests=PILOT_REQUESTS, seed=drawn.number)
    durations = [one.end_s - one.arrival_s for one in run.traces[0].requests if one.end_s is not None]
    return run.figures(Slo()), np.array(durations[len(durations) // 5 :])


def _loose(drawn: _Drawn, slo: Slo = Slo()) -> Slo:  # noqa: B008 (a frozen struct)
    """Returns latency objectives that bind only far above the users aimed at."""
    seen, _ = _pilot(drawn, 1.5 * drawn.users)
    return _with_latency(slo, ttft_s=LOOSE * seen.ttft_p95_s, tpot_s=LOOSE * seen.tpot_p95_s)


def _with_latency(slo: Slo, *, ttft_s: float, tpot_s: float) -> Slo:
    return Slo(
        ttft_p95_s=ttft_s,
        tpot_p95_s=tpot_s,
        preempted_fraction=slo.preempted_fraction,
        kv_blocked_fraction=slo.kv_blocked_fraction,
    )


def _of_ttft(number: int, rng: random.Random) -> VirtualDeployment:
    """Long prompts and short answers. In a quarter, people accept waits for memory, and TTFT binds there."""
    waits = rng.random() < 0.25
    drawn = _draw(
        number,
        rng,
        prompt=_Range(200, 2500),
        output=_Range(15, 100),
        fit=_Range(8, 40) if waits else _Range(20, 150),
        share=_Range(1.05, 1.6) if waits else _Range(0.2, 0.7),
    )
    seen, _ = _pilot(drawn, drawn.users)
    base = ACCEPTS_WAITING if waits else Slo()
    slo = _with_latency(base, ttft_s=seen.ttft_p95_s, tpot_s=_loose(drawn).tpot_p95_s)
    return drawn.limited(kind="ttft", slo=slo, waits=float(waits))


def _of_errors(number: int, rng: random.Random) -> VirtualDeployment:
    """A queue limit of the server (503), or a gateway's limit of unfinished requests or of requests a second
    (429), sometimes with Retry-After."""
    drawn = _draw(number, rng)
    slo, how = _loose(drawn), rng.random()
    in_flight, _ = _pilot(drawn, drawn.users)
    limit = max(round(in_flight.in_flight), 2)
    if how < 0.4:
        service = drawn.service.with_engine(max_num_queued_reqs=limit)
        return drawn.limited(kind="errors", slo=slo, service=service, queue_limit=float(limit))
    base = drawn.service.gateway or GatewayLimits()
    base = replace(
        base,
        refusal_s=log_uniform(rng, 0.001, 0.05),
        retry_after_s=rng.choice([None, None, 1.0, 5.0]),
    )
    if how < 0.75:
        gateway = replace(base, max_unfinished=limit)
        told = {"max_unfinished": float(limit)}
    else:
        rate = in_flight.output_tok_s / drawn.traits["output"] * rng.uniform(1.0, 1.4)
        gateway = replace(base, requests_per_s=rate, burst=rng.randint(2, 10))
        told = {"requests_per_s": rate, "burst": float(gateway.burst)}
    return drawn.limited(kind="errors", slo=slo, service=replace(drawn.service, gateway=gateway), **told)


def _of_timeouts(number: int, rng: random.Random) -> VirtualDeployment:
    """A time limit that one request in a hundred passes at the users aimed at.

    Output lengths are narrower than elsewhere: with heavy tails the longest answers alone would decide, and
    hardly depend on the users.
    """
    drawn = _draw(number, rng, share=_Range(0.25, 0.7), most_output_cv=0.5)
    _, durations_s = _pilot(drawn, drawn.users)
    timeout_s = float(np.quantile(durations_s, 0.99))
    return drawn.limited(
        kind="timeouts",
        slo=_loose(drawn),
        service=replace(drawn.service, timeout_s=timeout_s),
        timeout_s=timeout_s,
    )


def _of_throughput(number: int, rng: random.Random) -> VirtualDeployment:
    """Batches above the captured CUDA graphs run so much slower that output throughput falls for good.

    The pool ends before a larger batch would make up for it. With think time batches vary in size, and the
    fall would be spread over many users.
    """
    drawn = _draw(
        number,
        rng,
        prompt=_Range(20, 100),
        output=_Range(80, 250),
        fit=_Range(12, 60),
        share=_Range(0.3, 0.55),
        think=0.0,
    )
    engine = drawn.service.engine
    in_flight, _ = _pilot(drawn, drawn.users)
    captured = max(round(in_flight.in_flight), 4)
    slower = drawn.traits["fit"] / captured * rng.uniform(1.2, 2.5) - 1.0  # times the base step
    slo = _loose(drawn)
    return drawn.limited(
        kind="throughput",
        slo=_with_latency(slo, ttft_s=slo.ttft_p95_s * (1 + slower), tpot_s=slo.tpot_p95_s * (1 + slower)),
        service=drawn.service.with_engine(
            max_cudagraph_capture_size=captured, step_eager_s=slower * engine.step_base_s
        ),
        captured=float(captured),
        slower=slower,
    )


def _of_slots(number: int, rng: random.Random) -> VirtualDeployment:
    """Few slots, in a pool with room for more."""
    drawn = _draw(number, rng)
    slo = _loose(drawn)
    in_flight, _ = _pilot(drawn, drawn.users)
    slots = max(round(in_flight.in_flight), 2)
    service = drawn.service.with_engine(max_num_seqs=slots)
    slo = _with_latency(slo, ttft_s=20 * slo.ttft_p95_s, tpot_s=slo.tpot_p95_s)
    return drawn.limited(kind="max_num_seqs", slo=slo, service=service, slots=float(slots))


_DRAWS: dict[Kind, Callable[[int, random.Random], VirtualDeployment]] = {
    "ttft": _of_ttft,
    "errors": _of_errors,
    "timeouts": _of_timeouts,
    "throughput": _of_throughput,
    "max_num_seqs": _of_slots,
}
