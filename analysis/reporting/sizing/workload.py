"""Says what users ask, and what each class of a mix gets."""

from collections.abc import Sequence

from analysis.answers.sizing import FloatBand, SizedClass, StatedWorkload
from analysis.reporting.numbers import NONE
from loadtest.record import UserClass


def workload_text(workload: StatedWorkload) -> str:
    """Says in a sentence what users ask and which objectives they have."""
    slo = workload.slo
    if workload.classes:
        return (
            f"A mix of {_mix_text(workload.classes)}; TTFT p95 at most {slo.ttft_p95_s:g} s and TPOT p95 at "
            f"most {slo.tpot_p95_s:g} s where a class has no objective of its own."
        )
    think = "without think time" if workload.think_s == "0" else f"with think times of {workload.think_s} s"
    return (
        f"Users {think}, {_prompts_text(workload)} and answers of {workload.output_tokens} tokens; "
        f"TTFT p95 at most {slo.ttft_p95_s:g} s, TPOT p95 at most {slo.tpot_p95_s:g} s."
    )


def _mix_text(classes: Sequence[UserClass]) -> str:
    """Names the classes with their shares of the users, such as "chat (75 %), rag (25 %)"."""
    total = sum(one.weight for one in classes)
    return ", ".join(f"{one.name} ({100 * one.weight / total:.0f} %)" for one in classes)


def class_rows(classes: Sequence[SizedClass]) -> list[tuple[str, ...]]:
    """Returns the rows of the table of classes, with its heading row."""
    rows: list[tuple[str, ...]] = [
        ("class", "users", "TTFT p95, s", "90 %", "at most", "TPOT p95, s", "90 %", "at most", "KV cache")
    ]
    rows += [
        (
            one.name,
            f"{one.users:,}",
            *_p95_cells(one.ttft_p95_s, one.ttft_objective_s),
            *_p95_cells(one.tpot_p95_s, one.tpot_objective_s),
            f"{100 * one.kv_share:.0f} %",
        )
        for one in classes
    ]
    return rows


def _p95_cells(band: FloatBand | None, objective_s: float) -> tuple[str, str, str]:
    if band is None:
        return NONE, NONE, f"{objective_s:g}"
    low, estimate, high = (f"{end_s:.3g}" for end_s in band)
    return estimate, f"{low} to {high}", f"{objective_s:g}"


def _prompts_text(workload: StatedWorkload) -> str:
    text = f"prompts of {workload.prompt_tokens}"
    if workload.turns > 1:
        text = f"{workload.turns} turns with questions of {workload.prompt_tokens}"
    if workload.shared_prefix_tokens:
        text += f" after {workload.shared_prefix_tokens:,} shared tokens"
    return text
