"""The wall of stalls: where the engine has it, what a run says of it, and that TPOT does not show it."""

import math
from dataclasses import replace

import msgspec
import pytest

from analysis.answers.capacity import ModelAnswer
from analysis.capacity.answer import recommend
from analysis.notes import LighterWork, SecondReplica, SmallerTokenBudget
from analysis.reading.runs import Run
from analysis.reporting.capacity_json import model_object
from analysis.reporting.capacity_tables import in_time_cells, in_time_columns
from analysis.reporting.capacity_words import first_screen, not_met_text, objectives
from analysis.reporting.figures.capacity import capacity_figures
from analysis.twin.maximum import find_maximum
from analysis.virtual.run import simulate_users
from loadtest.record import Slo
from testing.truth.stalling import chats_and_documents, run_with_gaps
from testing.truth.virtual_load import VirtualLoad

LEVELS = (4, 8, 12, 16, 24)
STALLS = Slo(stall_p95_s=0.15)
"""An answer stands still for 0.2 s while a full step of another's prompt is computed."""
TRUE_USERS = 13.25
"""Users at which 5 % of the answers do: 4.86 % of 180,000 at 13 users and 5.47 % at 14, in virtual time."""


@pytest.fixture(scope="module")
def run() -> Run:
    return run_with_gaps(chats_and_documents(), STALLS, LEVELS, seed=0, level_s=150.0)


@pytest.fixture(scope="module")
def answer(run: Run) -> ModelAnswer:
    return recommend([run], slo=STALLS)


def test_the_wall_is_where_the_engine_has_it(answer: ModelAnswer) -> None:
    assert answer.headline.binding == "stall"
    assert answer.headline.estimate_x == pytest.approx(TRUE_USERS, rel=0.2)
    assert answer.headline.interval_x is not None
    low, high = answer.headline.interval_x
    assert high is not None
    assert low <= TRUE_USERS <= high
    (wall,) = (bound for bound in answer.bounds if bound.name == "stall")
    assert wall.rise_x is not None
    assert wall.rise_x[0] < wall.users_x < wall.rise_x[1]


def test_a_smaller_token_budget_is_an_option_where_long_prompts_stall(run: Run, answer: ModelAnswer) -> None:
    """A prompt of 4,000 tokens takes 0.4 s. Another engine has no flag of this name."""
    changes = [type(option.change) for option in answer.options]
    assert changes == [SmallerTokenBudget, LighterWork, SecondReplica]
    server = msgspec.structs.replace(run.info.server, engine="sglang")
    other = replace(run, info=msgspec.structs.replace(run.info, server=server))
    assert SmallerTokenBudget not in [type(one.change) for one in recommend([other], slo=STALLS).options]


def test_the_simulated_maximum_knows_it() -> None:
    found = find_maximum(chats_and_documents(), STALLS)
    assert found is not None
    assert found.wall == "stall"
    assert found.x == pytest.approx(TRUE_USERS, rel=0.25)
    assert found.below.tpot_p95_s < 0.03
    assert math.isnan(simulate_users(chats_and_documents(), 4).figures(Slo()).stall_p95_s)


def test_tpot_hides_what_stalls_show(answer: ModelAnswer) -> None:
    last = answer.levels[-1].requests
    assert last.tpot_s.p95 is not None
    assert last.tpot_s.p95 < 0.03
    assert last.stall_s.p95 is not None
    assert last.stall_s.p95 > 0.15
    shares = [level.requests.stall_miss.fraction for level in answer.levels]
    assert shares[0] < 0.05 < shares[-1]


def test_without_an_objective_stalls_are_figures_and_no_wall(run: Run, answer: ModelAnswer) -> None:
    free = recommend([run], slo=Slo())
    assert free.headline.binding != "stall"
    assert "stall" not in {wall.name for wall in [*free.bounds, *free.not_met]} | set(free.not_observable)
    assert [level.requests.stall_s for level in free.levels] == [
        level.requests.stall_s for level in answer.levels
    ]
    assert "stall" not in " ".join([*objectives(Slo()), *first_screen(free, slo=Slo(), confidence=0.9)])
    assert set(capacity_figures(free, Slo())) == set(capacity_figures(answer, STALLS)) - {"stall"}


def test_a_loose_objective_is_named_as_held(run: Run) -> None:
    loose = recommend([run], slo=Slo(stall_p95_s=0.5))
    assert loose.headline.binding != "stall"
    (held,) = (wall for wall in loose.not_met if wall.name == "stall")
    assert held.holds_to_users == LEVELS[-1]
    assert "Stalls: at most" in not_met_text(loose)
    assert "stalled up to 24 users (5 % allowed)" in not_met_text(loose)


def test_the_report_says_it(answer: ModelAnswer) -> None:
    said = " ".join(first_screen(answer, slo=STALLS, confidence=0.9))
    assert "stalls. " in said
    assert "answers stand still for too long before they go on" in said
    assert "stall p95 at most 0.15 s" in said
    assert "95 of 100 answers never stand still for more than 0.15 s" in objectives(STALLS)
    assert "objective 150 ms" in capacity_figures(answer, STALLS)["stall"]
    assert in_time_columns(STALLS)[-1] == "stall in time (90 % interval)"
    assert len(in_time_cells(answer.levels[0], STALLS)) == len(in_time_columns(STALLS)) == 4


def test_capacity_json_has_stalls_of_each_level(answer: ModelAnswer) -> None:
    levels = model_object(answer)["levels"]
    assert isinstance(levels, list)
    for written, level in zip(levels, answer.levels, strict=True):
        assert written["stall_s"] == level.requests.stall_s
        assert set(written["stalled"]) == {"0.25", "0.5", "1"}
        assert written["stalled"]["1"] == 0.0
        share = written["stall_in_time"]["share"]
        assert share == pytest.approx(1.0 - level.requests.stall_miss.fraction)


def test_without_times_between_events_the_objective_is_said_to_be_unseen() -> None:
    """As in results of tools that write the first and the last time only."""
    load = VirtualLoad(chats_and_documents(), STALLS, seed=0)
    for users in LEVELS[:2]:
        load.hold(users, 65.0)
    blind = recommend([load.run()], slo=STALLS)
    assert "stall" in blind.not_observable
    assert "stall" not in {wall.name for wall in [*blind.bounds, *blind.not_met]}
    assert "Not observable here: " in not_met_text(blind)
    assert all(math.isnan(share) for level in blind.levels for share in level.requests.stalled)


def test_a_smaller_token_budget_moves_the_wall_up() -> None:
    """What --max-num-batched-tokens does: prompts are computed in shorter steps."""
    found = find_maximum(chats_and_documents(max_num_batched_tokens=1024), STALLS)
    assert found is not None
    assert found.x > 3 * TRUE_USERS
