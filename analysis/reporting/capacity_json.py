"""Makes the content of `capacity.json`, a stable format for scripts.

Doubts, warnings and options are codes in the answer; here they become sentences.
"""

from analysis.answers.capacity import Answer, Failures, ModelAnswer, Option, WorkloadSummary
from analysis.levels.level import Level
from analysis.levels.open_loop import Slice
from analysis.levels.requests import STALL_THRESHOLDS_S
from analysis.reporting.failure_words import ADVICE
from analysis.reporting.words import sentences, words
from analysis.statistics.samples import MissShare, in_time

SCHEMA = 1
WITHOUT_MODEL = "no model here says by how many users"


def answer_object(answer: Answer) -> dict[str, object]:
    """Returns the content of capacity.json for an answer."""
    return {
        "schema": SCHEMA,
        "generated_unix_s": answer.generated_unix_s,
        "confidence": answer.confidence,
        "slo": answer.slo,
        "models": [model_object(model) for model in answer.models],
    }


def model_object(model: ModelAnswer) -> dict[str, object]:
    """Returns the JSON object of one model's answer.

    The fields of the headline are not nested: they stand beside the other fields.
    """
    head = model.headline
    return {
        "model": model.model,
        "runs": model.runs,
        "max_users": head.max_users,
        "estimate": head.estimate,
        "interval": head.interval,
        "estimate_x": head.estimate_x,
        "interval_x": head.interval_x,
        "max_in_flight": model.max_in_flight,
        "at_least": head.at_least,
        "binding": head.binding,
        "p_binding": head.p_binding,
        "bounds": model.bounds,
        "not_met": model.not_met,
        "not_observable": model.not_observable,
        "prefix_cache": model.prefix_cache,
        "by_latency_alone": model.by_latency_alone,
        "people": model.people,
        "busiest_hour": model.busiest_hour,
        "memory": model.memory,
        "latency": model.latency,
        "failures": [_failures_object(one) for one in model.failures],
        "classes": model.classes,
        "replay": model.replay,
        "levels": [_level_object(level) for level in model.levels],
        "open_loop": [_slice_object(one) for one in model.open_loop],
        "levers": [_option_object(option) for option in model.options],
        "refused": model.refused,
        "reasons": sentences(model.reasons),
        "warnings": sentences(model.warnings),
        "host": model.host,
        "server": model.server,
        "gpu": model.gpu,
        "simulated": model.simulated,
        "workload": _workload_object(model.workload),
        "timing_error_s": model.timing_error_s,
    }


def _level_object(level: Level) -> dict[str, object]:
    """Returns the JSON object of one level. A nan becomes null when the object is written as JSON."""
    requests, server = level.requests, level.server
    return {
        "users": level.users,
        "run_id": level.run_id,
        "in_flight": level.in_flight,
        "n": requests.n,
        "window_s": level.window.length_s,
        "ttft_s": requests.ttft_s,
        "tpot_s": requests.tpot_s,
        "decode_tok_s": requests.decode_tok_s,
        "chunk_gap_s": requests.chunk_gap_s,
        "stall_s": requests.stall_s,
        "stalled": {
            f"{limit_s:g}": share for limit_s, share in zip(STALL_THRESHOLDS_S, requests.stalled, strict=True)
        },
        "gap_is_itl": requests.gap_is_itl,
        "arrivals_per_chunk": requests.arrivals_per_chunk,
        "ttft_mean_s": requests.ttft_mean_s,
        "e2e_mean_s": requests.e2e_mean_s,
        "engine": {
            "ttft_mean_s": server.ttft_mean_s,
            "tpot_mean_s": server.tpot_mean_s,
            "e2e_mean_s": server.e2e_mean_s,
        },
        "e2e_s": requests.e2e_s,
        "output_tok_s": requests.output_tok_s,
        "goodput_rps": requests.goodput_rps,
        "kv_cache_usage": server.kv_cache_usage,
        "preempted_fraction": level.preempted_fraction,
        "kv_blocked_fraction": server.blocked.fraction if server.blocked else None,
        "prefix_hit_rate": server.prefix_hit_rate,
        "ttft_in_time": _share_in_time(requests.ttft_miss),
        "tpot_in_time": _share_in_time(requests.tpot_miss),
        "stall_in_time": _share_in_time(requests.stall_miss),
        "ttft_miss_fraction": requests.ttft_miss.fraction,
        "tpot_miss_fraction": requests.tpot_miss.fraction,
        "errors": requests.errors,
        "cancelled": requests.cancelled,
        "trusted": level.trusted,
        "why_not": sentences(level.why_not),
    }


def _failures_object(one: Failures) -> dict[str, object]:
    fields = {name: getattr(one, name) for name in one.__struct_fields__}
    by_users = [
        {"users": users, "count": count, "requests": requests} for users, count, requests in one.by_users
    ]
    return {**fields, "by_users": by_users, "advice": ADVICE[one.advice]}


def _share_in_time(misses: MissShare) -> dict[str, object] | None:
    """Returns the share of requests within an objective and its 90 % interval; None without requests."""
    found = in_time(misses)
    return None if found is None else {"share": found[0], "interval": found[1:]}


def _slice_object(one: Slice) -> dict[str, object]:
    return {
        name: sentences(one.why_not) if name == "why_not" else getattr(one, name)
        for name in one.__struct_fields__
    }


def _option_object(option: Option) -> dict[str, object]:
    return {
        "change": words(option.change),
        "users": option.users,
        "users_x": option.users_x,
        "gain_users": option.gain_users,
        "limited_by": option.limited_by,
        "beyond": option.beyond,
        "note": "" if option.users is not None else WITHOUT_MODEL,
    }


def _workload_object(workload: WorkloadSummary) -> dict[str, str]:
    if workload.prompt_mean is None or workload.output_mean is None:
        return workload.settings
    seen = (
        f"{workload.requests} requests, prompt {workload.prompt_mean:.0f} tokens, "
        f"output {workload.output_mean:.0f} tokens (means)"
    )
    return {**workload.settings, "seen": seen}
