"""Files of a report, each replaced whole; and its HTML templates."""

import re
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import jinja2
import msgspec

from loadtest.errors import InputError


def json_text(answer: object) -> str:
    """JSON as files and `--format json` have it; nan becomes null."""
    return msgspec.json.format(msgspec.json.encode(answer), indent=1).decode() + "\n"


def write_files(
    folder: Path,
    files: Mapping[str, str],
    *,
    make_folder: bool = True,
    otherwise: str = "name another --output",
) -> None:
    """Name -> text, into a folder. Raises InputError, which says what to do, where it may not."""
    try:
        if make_folder:
            folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            replace_file(folder / name, text)
    except OSError as problem:
        raise InputError(f"{folder} cannot be written to ({problem.strerror}): {otherwise}.") from None


def replace_file(path: Path, text: str) -> None:
    """Whoever reads the file sees the old one or the new one, whole."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        file.write(text)
    temporary = Path(file.name)
    temporary.chmod(0o644)
    temporary.replace(path)


def slug(name: str) -> str:
    """A model's name as part of a file name."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.") or "model"


def page(template: str, **values: object) -> str:
    """A template of this folder, filled. What values hold is escaped; a missing name is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(values)


def day(unix_s: float) -> str:
    """A date and time as a person writes it."""
    return datetime.fromtimestamp(unix_s, tz=UTC).strftime("%d %B %Y, %H:%M UTC")
