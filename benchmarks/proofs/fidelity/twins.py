"""Calibrates the twin, scales it to the speed of a run, and plays the traffic of a run."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from analysis.evidence.evidence import Evidence, gather_evidence
from analysis.evidence.lengths import length_pairs_of
from analysis.levels.level import Level
from analysis.reading.runs import Run
from analysis.twin.calibration import ServerFlags, ServiceFit, calibrate
from analysis.twin.chatting import chatting_of
from analysis.twin.step_fit import STEP_TERMS
from analysis.virtual.crowd import DueRequest
from analysis.virtual.run import VirtualRun, simulate_arrivals, simulate_users
from analysis.virtual.service import ChatBehaviour, Service
from benchmarks.proofs.fidelity.conditions import BUDGET, OBJECTIVES, SERVER_SLOTS, VllmFlags
from benchmarks.proofs.fidelity.figures import TwinFigures, closed_loop_evidence
from testing.vllm.server import BLOCK_SIZE


def calibrated(repeated: Sequence[Sequence[Run]]) -> ServiceFit:
    """Calibrates the twin on closed-loop runs."""
    parts = [gather_evidence([run], slo=OBJECTIVES) for one in repeated for run in one]
    runs = [run for part in parts for run in part.runs]
    levels = [level for part in parts for level in part.levels]
    pairs = length_pairs_of(runs, block_tokens=BLOCK_SIZE)
    evidence = replace(parts[0], runs=runs, levels=levels, pairs=pairs)
    flags = ServerFlags(max_num_seqs=SERVER_SLOTS, max_num_batched_tokens=BUDGET)
    return calibrate(evidence, levels, flags)


def terms_text(calibration: ServiceFit) -> str:
    engine, service = calibration.service.engine, calibration.service
    return (
        f"calibrated: {1e3 * engine.step_base_s:.2f} ms a step, "
        f"{1e6 * engine.step_per_seq_s:.0f} us a sequence, "
        f"{1e9 * engine.step_per_kv_token_s:.0f} ns a KV token, "
        f"{1e6 * engine.prefill_per_token_s:.1f} us a prompt token, jitter {engine.jitter_cv:.2f}; "
        f"between engine and client {1e3 * service.overhead_s:.1f} ms "
        f"and {1e6 * service.overhead_per_user_s:.0f} us a user"
    )


def with_flags(service: Service, server: VllmFlags) -> Service:
    longest = min(service.engine.max_model_len, (server.blocks - 1) * service.engine.block_size)
    return service.with_engine(
        num_gpu_blocks=server.blocks,
        max_num_seqs=server.slots,
        max_num_batched_tokens=server.budget,
        max_model_len=longest,
    )


def at_speed_of(service: Service, real: TwinFigures, side: VirtualRun) -> Service:
    """Multiplies all times of the twin by one factor: the run's median TPOT over the twin's."""
    factor = real["tpot_p50_s"] / side.figures(OBJECTIVES).tpot_p50_s
    engine = service.engine
    return replace(
        service,
        engine=replace(engine, **{name: factor * getattr(engine, name) for name in STEP_TERMS}),
        overhead_s=factor * service.overhead_s,
        overhead_per_user_s=factor * service.overhead_per_user_s,
    )


def twin_of_closed_loop(service: Service, evidence: Evidence, level: Level, users: int) -> VirtualRun:
    with_people = replace(service, chatting=chatting_of(evidence, [level]))
    return simulate_users(with_people, users, requests=max(6000, 60 * users))


def twin_of_open_loop(service: Service, run: Run, prefix_blocks: Sequence[tuple[int, ...]]) -> VirtualRun:
    rows = run.requests
    at = rows.start_unix_s + rows.sent_s
    order = np.argsort(at)
    in_flight = float(np.sum(rows.end_s - rows.sent_s) / (at.max() - at.min()))
    lag_s = service.overhead_at(in_flight)
    due = [
        DueRequest(
            at_s=float(at[row] - at.min()),
            prompt_tokens=int(rows.prompt_tokens[row]),
            output_tokens=int(rows.output_tokens[row]),
            prefix_blocks=prefix_blocks[int(rows.user[row])]
            if len(prefix_blocks) > int(rows.user[row])
            else (),
        )
        for row in order
    ]
    return simulate_arrivals(replace(service, overhead_s=lag_s, overhead_per_user_s=0.0), due)


def people_of(runs: Sequence[Run]) -> ChatBehaviour:
    evidence, level = closed_loop_evidence(runs[0])
    return chatting_of(evidence, [level])


def play_level(service: Service, users: int) -> VirtualRun:
    return simulate_users(service, users, requests=max(6000, 60 * users))


def with_half_lengths(service: Service) -> Service:
    chats = [[(max(s // 2, 1), max(o // 2, 1)) for s, o in turns] for turns in service.chatting.conversations]
    return replace(service, chatting=replace(service.chatting, conversations=chats))
