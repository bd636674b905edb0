"""Writes run folders from given rows."""

from pathlib import Path

import msgspec

from loadtest.record import Outcome, RequestRecord, RunInfo, encode_line


def row(number: int = 0, **changes: object) -> RequestRecord:
    values: dict[str, object] = {
        "request_id": str(number),
        "model": "tiny",
        "scenario": "chat",
        "worker": "0",
        "user": 1,
        "turn": 0,
        "level_users": 1,
        "start_unix_s": 100.0 + number,
        "sent_s": 0.001,
        "chunk_s": [0.1, 0.2, 0.4],
        "end_s": 0.5,
        "prompt_tokens": 10,
        "output_tokens": 3,
        "max_tokens": 3,
        "outcome": Outcome.OK,
        "http_status": 200,
    }
    return RequestRecord(**(values | changes))  # type: ignore[arg-type]


def make_folder(folder: Path, rows: list[RequestRecord], **info: object) -> Path:
    folder.mkdir(parents=True)
    values: dict[str, object] = {
        "run_id": folder.name,
        "model": "tiny",
        "scenario": "chat",
        "host": "http://h",
        "started_unix_s": 100.0,
        "ended_unix_s": 200.0,
        "settings": {},
    }
    (folder / "run.json").write_bytes(msgspec.json.encode(RunInfo(**(values | info))))  # type: ignore[arg-type]
    (folder / "requests-0.jsonl").write_bytes(b"".join(encode_line(one) for one in rows))
    return folder
