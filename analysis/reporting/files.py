"""Writes the files of a report, and fills its HTML templates."""

import re
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import jinja2
import msgspec

from loadtest.errors import InputError


def json_text(answer: object) -> str:
    """Returns an answer as JSON text for files and `--format json`; nan becomes null."""
    return msgspec.json.format(msgspec.json.encode(answer), indent=1).decode() + "\n"


def write_files(
    folder: Path,
    files: Mapping[str, str],
    *,
    make_folder: bool = True,
    otherwise: str = "name another --output",
) -> None:
    """Writes files into a folder. Raises InputError if this is not possible.

    files: a map from file name to text. otherwise: the advice at the end of the error message.
    """
    try:
        if make_folder:
            folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            replace_file(folder / name, text)
    except OSError as problem:
        raise InputError(f"{folder} cannot be written to ({problem.strerror}): {otherwise}.") from None


def replace_file(path: Path, text: str) -> None:
    """Replaces a file in one step, so that a reader gets either the whole old or the whole new text."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        file.write(text)
    temporary = Path(file.name)
    temporary.chmod(0o644)
    temporary.replace(path)


def slug(name: str) -> str:
    """Converts a model's name into a part of a file name."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.") or "model"


def page(template: str, **values: object) -> str:
    """Fills an HTML template and returns the page. Values are escaped, and a missing value is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(values)


def day(unix_s: float) -> str:
    """Formats a Unix time, such as `28 November 2026, 12:30 UTC`."""
    return datetime.fromtimestamp(unix_s, tz=UTC).strftime("%d %B %Y, %H:%M UTC")
