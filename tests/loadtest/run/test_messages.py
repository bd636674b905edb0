"""Messages between processes survive the wire: plain values in msgpack, as Locust sends them."""

import inspect

import msgspec
import pytest

from loadtest.record import UserClass
from loadtest.run import messages
from loadtest.run.live.rows import LiveRow
from loadtest.run.messages import (
    ArrivalAssignments,
    CurrentLevel,
    LeaderTime,
    PromptNumbers,
    PromptNumbersWanted,
    RowBatch,
    RowReceipt,
    RunPlan,
    SessionBatch,
    SessionsWanted,
    StopAsking,
    StopMeasuring,
    WorkerRefused,
    WorkerReport,
)
from loadtest.workload.arrivals import WorkerAssignment
from loadtest.workload.prompts import PromptScale

PLAN = RunPlan(
    run_id="r",
    folder="/reports/r",
    host="http://127.0.0.1:8000",
    model="m",
    scenario="chat",
    max_model_len=None,
    scale=PromptScale(overhead_tokens=9.0, tokens_per_word=1.3),
    nonce="n",
    classes=[UserClass(name="chat", prompt_tokens="100", output_tokens="10")],
    settings={"levels": [1, 2], "think_s": "0"},
)
REPORT = WorkerReport(
    run_id="r",
    worker="1",
    in_flight=3,
    arriving=False,
    clipped=0,
    stopped=False,
    shares_disk=False,
    undelivered_bytes=7,
    clock_offset_s=None,
    unix_s=10.0,
    lost_rows=0,
    answering=(8.5, 9.5),
    health=(0.001, 0.2),
    live=[LiveRow(9.5, 0.2, None, "ok"), LiveRow(9.75, None, None, "timeout")],
)
MESSAGES = [
    PLAN,
    CurrentLevel(users=4),
    CurrentLevel(users=None),
    ArrivalAssignments(start_unix_s=1.5, assignments=[WorkerAssignment(0.0, ("0", "1"))]),
    StopAsking(),
    StopMeasuring(),
    REPORT,
    PromptNumbersWanted(),
    PromptNumbers(first=8, count=4),
    SessionsWanted(),
    SessionBatch(sessions=[b"\x81\xc3", b""], start_unix_s=3.5),
    SessionBatch(sessions=[b"\x81"]),
    WorkerRefused(reason="no prompts"),
    LeaderTime(asked_unix_s=1.0, leader_unix_s=2.0),
    RowBatch(run_id="r", file="requests-1.jsonl", offset=3, data=b'{"a": "\xc3\xa4"}\n'),
    RowReceipt(run_id="r", file="requests-1.jsonl", size=12),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_is_the_same_after_the_wire(message: msgspec.Struct) -> None:
    plain = msgspec.to_builtins(message, builtin_types=(bytes,))
    received = msgspec.msgpack.decode(msgspec.msgpack.encode(plain))
    assert msgspec.convert(received, type(message)) == message


def test_every_message_is_tried() -> None:
    kinds = {
        kind
        for _, kind in inspect.getmembers(messages, inspect.isclass)
        if issubclass(kind, msgspec.Struct) and kind.__module__ == messages.__name__
    }
    assert kinds == {type(message) for message in MESSAGES}


def test_a_plan_travels_as_text() -> None:
    assert RunPlan.read(PLAN.write()) == PLAN
