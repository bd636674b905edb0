"""TODO."""

import re
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import jinja2
import msgspec
from markupsafe import Markup

from analysis.answers.capacity import (
    Answer,
    ModelAnswer,
)
from analysis.reporting.capacity import (
    certainty,
    headline,
    latency_rows,
    level_cells,
    lever_text,
    limit,
    memory_rows,
    not_met_text,
    slice_cells,
    wall_cells,
)
from analysis.reporting.numbers import percentile_cells
from loadtest.errors import InputError


def json_text(answer: msgspec.Struct) -> str:
    """As files and `--format json` have it."""
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


def figure_file(answer: Answer, model: ModelAnswer, name: str) -> str:
    if len(answer.models) == 1:
        return f"{name}.svg"
    return f"{slug(model.model)}-{name}.svg"


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
    """For a person."""
    return datetime.fromtimestamp(unix_s, tz=UTC).strftime("%d %B %Y, %H:%M UTC")


def render_page(model: ModelAnswer, figures: dict[str, str], answer: Answer) -> dict[str, object]:
    """What the template shows of one model, all of it text."""
    return {
        "answer": model,
        "headline": headline(model),
        "certainty": certainty(model, confidence=answer.confidence),
        "limit": limit(model),
        "levers": [lever_text(lever) for lever in model.levers],
        "levels": [(level, level_cells(level)) for level in model.levels],
        "walls": [(bound, wall_cells(bound)) for bound in model.bounds],
        "not_met": not_met_text(model),
        "memory": memory_rows(model),
        "latency": latency_rows(model),
        "slices": [slice_cells(one) for one in model.open_loop],
        "percentiles": [percentile_cells(level) for level in model.levels],
        "figures": {name: Markup(text) for name, text in figures.items()},
        "slug": slug(model.model),
    }
