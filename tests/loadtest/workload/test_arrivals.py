"""When requests of an open loop are due, and which worker sends them."""

import itertools
import statistics

import pytest

from loadtest.workload.arrivals import Arrival, ArrivalProcess, WorkerAssignment, is_assigned

LONG_S = 5000.0


def times(law: str, *, seed: int = 1, duration_s: float = LONG_S) -> list[float]:
    return [one.due_s for one in ArrivalProcess.parse(law).arrivals(seed=seed, duration_s=duration_s)]


def gaps(law: str) -> list[float]:
    due = times(law)
    return [after - before for before, after in itertools.pairwise(due)]


@pytest.mark.parametrize(
    ("law", "mean_s", "cv"),
    [
        ("constant:4", 0.25, 0.0),
        ("poisson:4", 0.25, 1.0),
        ("gamma:4,0.25", 0.25, 2.0),
        ("gamma:2,4", 0.5, 0.5),
    ],
)
def test_a_law_has_the_rate_and_the_burstiness_it_names(law: str, mean_s: float, cv: float) -> None:
    found = gaps(law)
    assert statistics.mean(found) == pytest.approx(mean_s, rel=0.05)
    assert statistics.stdev(found) / statistics.mean(found) == pytest.approx(cv, rel=0.05, abs=1e-6)


@pytest.mark.parametrize(("law", "quarter"), [("poisson:0-8", 1 / 16), ("constant:8-0", 7 / 16)])
def test_a_ramp_changes_its_rate_evenly(law: str, quarter: float) -> None:
    due = times(law)
    assert len(due) == pytest.approx(4 * LONG_S, rel=0.03)
    assert sum(one < LONG_S / 4 for one in due) / len(due) == pytest.approx(quarter, rel=0.05)


def test_arrivals_follow_the_seed() -> None:
    assert times("poisson:4") == times("poisson:4")
    assert times("poisson:4") != times("poisson:4", seed=2)


@pytest.mark.parametrize("law", ["poisson", "poisson:0", "poisson:4,2", "gamma:4", "gamma:4,0", "weibull:2"])
def test_a_nonsense_law_is_refused_with_the_forms(law: str) -> None:
    with pytest.raises(ValueError, match="gamma:RATE,BURSTINESS"):
        ArrivalProcess.parse(law)


def test_workers_share_every_arrival_once_and_again_after_a_change() -> None:
    shares = [WorkerAssignment(0.0, ("0", "1")), WorkerAssignment(50.0, ("1", "2", "3"))]
    for number, due_s in enumerate(times("poisson:4", duration_s=100)):
        senders = [name for name in "0123" if is_assigned(Arrival(number, due_s), name, shares)]
        assert len(senders) == 1
        assert senders[0] in shares[due_s >= 50.0].workers
