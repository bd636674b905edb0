import errno
import os
from pathlib import Path

import msgspec
import pytest

from loadtest.record import ClientSample, RunInfo
from loadtest.run.sink import RowFile, create_run_folder, new_run_id, write_run_info


def row(number: int) -> ClientSample:
    return ClientSample(
        unix_s=float(number), loop_lag_max_s=0.0, cpu=0.0, in_flight=0, started_total=number, ended_total=0
    )


def numbers(path: Path) -> list[int]:
    return [
        msgspec.json.decode(line, type=ClientSample).started_total for line in path.read_bytes().splitlines()
    ]


def test_rows_are_appended_in_order(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "rows.jsonl")
    for first in (0, 3):
        for number in range(first, first + 3):
            file.append(row(number))
        assert file.unwritten_rows == 3
        file.flush()
    assert file.unwritten_rows == 0
    assert numbers(file.path) == [0, 1, 2, 3, 4, 5]


def test_a_vanished_folder_keeps_the_rows_until_it_is_back(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    file = RowFile(folder / "rows.jsonl")
    file.append(row(0))
    file.flush()
    file.append(row(1))
    file.flush()
    assert file.unwritten_rows == 2
    folder.mkdir()
    file.flush()
    assert numbers(file.path) == [0, 1]


def test_a_folder_that_stays_away_is_made_anew_at_the_end(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "run" / "rows.jsonl")
    file.append(row(0))
    file.flush()
    file.append(row(1))
    assert file.close() == 0
    assert numbers(file.path) == [0, 1]


def test_what_cannot_be_written_at_the_end_is_counted(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("not a folder")
    file = RowFile(tmp_path / "run" / "rows.jsonl")
    file.append(row(0))
    file.append(row(1))
    assert file.close() == 2


def test_a_full_disk_keeps_what_did_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, left = os.write, 40

    def write(descriptor: int, data: bytes) -> int:
        nonlocal left
        if left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real(descriptor, data[:left])
        left -= written
        return written

    file = RowFile(tmp_path / "rows.jsonl")
    file.append(row(0))
    file.append(row(1))
    monkeypatch.setattr(os, "write", write)
    file.flush()
    file.flush()
    monkeypatch.setattr(os, "write", real)
    file.append(row(2))
    file.flush()
    assert numbers(file.path) == [0, 1, 2]


def test_run_ids_are_safe_and_sort_by_time() -> None:
    first = new_run_id(model="org/Model 1:b", unix_s=1_795_513_188)
    assert first == "20261124T093948Z-org-Model-1-b"
    assert first < new_run_id(model="a", unix_s=1_795_513_189)


def test_two_runs_of_one_second_have_two_folders(tmp_path: Path) -> None:
    folders = {create_run_folder(tmp_path / "reports", "r") for _ in range(3)}
    assert {folder.name for folder in folders} == {"r", "r-2", "r-3"}


def test_run_json_is_replaced_whole(tmp_path: Path) -> None:
    info = RunInfo(run_id="r", model="m", scenario="s", host="h", started_unix_s=1.0, settings={})
    write_run_info(tmp_path, info)
    info.schedule.append((1.0, 2.0, 3))
    write_run_info(tmp_path, info)
    assert msgspec.json.decode((tmp_path / "run.json").read_bytes(), type=RunInfo) == info
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
