"""Result files of guidellm, aiperf and `vllm bench serve` -> Stage. What they lack: docs/importing.md."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from analysis.reading.aiperf import read_aiperf
from analysis.reading.guidellm import read_guidellm
from analysis.reading.result_rows import LoadStage
from analysis.reading.vllm_bench import read_vllm_bench
from loadtest.errors import InputError

SUPPORTED_FILES = (
    "guidellm's JSON, aiperf's profile_export.jsonl, or `vllm bench serve --save-result --save-detailed`"
)


def read_file(file: Path, *, named: bool) -> Iterator[LoadStage]:
    """What the file holds; nothing where it is of another kind, unless it was named: then InputError."""
    documents = _documents(file)
    keys = set(documents[0][1])
    try:
        if {"benchmarks", "metadata"} <= keys:
            yield from read_guidellm(file, documents[0][0])
        elif {"model_id", "duration", "completed"} <= keys:
            yield from (read_vllm_bench(file, data, set(found)) for data, found in documents)
        elif {"metadata", "metrics"} <= keys:
            yield read_aiperf(file, [data for data, _ in documents])
        elif named:
            raise InputError(_not_a_result(file, keys))
    except msgspec.ValidationError as problem:
        raise InputError(
            f"{file} is not as the versions write it that are read here ({problem}): see docs/importing.md."
        ) from None


def _not_a_result(file: Path, keys: set[str]) -> str:
    if "aiperf_version" in keys:
        return f"{file} is aiperf's summary and holds no requests: name the profile_export.jsonl beside it."
    return f"{file} is not a result that can be read: {SUPPORTED_FILES}."


def _documents(file: Path) -> list[tuple[bytes, dict[str, msgspec.Raw]]]:
    """The JSON objects of a file, the whole of it or one a line, each with its keys."""
    data = file.read_bytes()
    try:
        return [(data, _keys(data))]
    except msgspec.DecodeError as whole:
        lines = [line for line in data.splitlines() if line.strip()]
        try:
            return [(line, _keys(line)) for line in lines] if len(lines) > 1 else _cut_off(file, whole)
        except msgspec.DecodeError as problem:
            return _cut_off(file, problem)


def _cut_off(file: Path, problem: msgspec.DecodeError) -> list[tuple[bytes, dict[str, msgspec.Raw]]]:
    raise InputError(f"{file} is not whole JSON ({problem}): was it cut off while it was written or copied?")


def _keys(data: bytes) -> dict[str, msgspec.Raw]:
    try:
        return msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        return {}  # JSON, but not an object
