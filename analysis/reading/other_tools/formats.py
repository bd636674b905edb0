"""Detection of the tool that wrote a result file, and the choice of that tool's reader."""

from collections.abc import Callable
from pathlib import Path

import msgspec

from analysis.reading.other_tools.aiperf import read_aiperf
from analysis.reading.other_tools.guidellm import read_guidellm
from analysis.reading.other_tools.stages import Document, LoadStage
from analysis.reading.other_tools.vllm_bench import read_vllm_bench
from loadtest.errors import InputError

SUPPORTED_FILES = (
    "guidellm's JSON, aiperf's profile_export.jsonl, or `vllm bench serve --save-result --save-detailed`"
)
READERS: tuple[tuple[frozenset[str], Callable[[Path, list[Document]], list[LoadStage]]], ...] = (
    (frozenset({"benchmarks", "metadata"}), read_guidellm),
    (frozenset({"model_id", "duration", "completed"}), read_vllm_bench),
    (frozenset({"metadata", "metrics"}), read_aiperf),
)
"""Top-level keys of each tool's documents, and its reader. The first entry with all keys present is used."""


def read_file(file: Path, *, named: bool) -> list[LoadStage]:
    """Returns the stages of a result file; an empty list if the file is no result of a supported tool.

    named: whether the user named this file. Raises InputError when a named file is no result of a
    supported tool, and when any file is cut off or of an unsupported version.
    """
    documents = _documents(file)
    keys = documents[0].keys
    reader = next((reader for wanted, reader in READERS if wanted <= keys), None)
    if reader is None:
        if named:
            raise InputError(_not_a_result(file, keys))
        return []
    try:
        return reader(file, documents)
    except msgspec.ValidationError as problem:
        raise InputError(
            f"{file} does not have the form of the supported versions ({problem}): see docs/importing.md."
        ) from None


def _not_a_result(file: Path, keys: frozenset[str]) -> str:
    if "aiperf_version" in keys:
        return f"{file} is aiperf's summary and holds no requests: name the profile_export.jsonl beside it."
    return f"{file} is not a result that can be read: name {SUPPORTED_FILES}."


def _documents(file: Path) -> list[Document]:
    """Splits a file into JSON objects. Either the whole file is one object, or each line is one.

    Raises InputError if the file is cut off.
    """
    data = file.read_bytes()
    try:
        return [_document(data)]
    except msgspec.DecodeError as problem:
        lines = [line for line in data.splitlines() if line.strip()]
        if len(lines) < 2:
            raise _cut_off(file, problem) from None
    try:
        return [_document(line) for line in lines]
    except msgspec.DecodeError as problem:
        raise _cut_off(file, problem) from None


def _cut_off(file: Path, problem: msgspec.DecodeError) -> InputError:
    return InputError(f"{file} is not whole JSON ({problem}): was it cut off while it was written or copied?")


def _document(data: bytes) -> Document:
    try:
        keys = frozenset(msgspec.json.decode(data, type=dict[str, msgspec.Raw]))
    except msgspec.ValidationError:
        keys = frozenset[str]()  # JSON, but not an object
    return Document(data=data, keys=keys)
