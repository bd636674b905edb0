"""The terminal: sentences, tables, a progress bar. Knows no answer."""

import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich import box
from rich.console import Console, JustifyMethod
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 130


@dataclass(frozen=True, kw_only=True)
class ProgressBar:
    """Progress on stderr, where that is a terminal."""

    task: Callable[..., Callable[[int], None]]
    """Begins a task, `task(name, total=...)`, and returns what to call with the size of each step."""


@contextmanager
def progress() -> Iterator[ProgressBar]:
    """A progress bar that vanishes when done."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:

        def task(name: str, *, total: int) -> Callable[[int], None]:
            identity = bar.add_task(name, total=total)
            return lambda by: bar.advance(identity, by)

        yield ProgressBar(task=task)


def print_error(sentence: str) -> None:
    """Prints one sentence on stderr."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(sentence, markup=False)


def print_plain(text: str) -> None:
    """Prints a text on stdout as it is."""
    sys.stdout.write(f"{text}\n")


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table in Markdown."""
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join(["--:"] * len(head)) + "|"]
    return [*lines, *["| " + " | ".join(row) + " |" for row in rows], ""]


# The terminal.


class Output(Console):
    """Standard output: wrapped on a terminal, a line for each sentence elsewhere. A reader who stops (`|
    head`) ends the printing and nothing else. A character that the encoding lacks becomes a question mark."""

    def __init__(self) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")
        super().__init__(highlight=False)
        if not self.is_terminal:
            self.width = max(self.width, PLAIN_WIDTH)

    def on_broken_pipe(self) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show_list(out: Console, title: str, lines: Sequence[str]) -> None:
    """Prints a title and its points; nothing where there are no points."""
    if not lines:
        return
    out.print()
    print_indented(out, title, style="bold")
    for line in lines:
        print_indented(out, f"- {line}")


def print_indented(out: Console, text: str, *, style: str = "") -> None:
    """Prints an indented text: wrapped on a terminal, in one line elsewhere."""
    if out.is_terminal:
        out.print(Padding(Text(text, style=style), (0, 0, 0, 2), expand=False))
    else:
        out.print(f"  {text}", soft_wrap=True, markup=False)


def terminal_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table for the terminal; walls are named at the left, numbers stand at the right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for place, name in enumerate(head):
        side: JustifyMethod = "left" if place == 0 and head[0] == "wall" else "right"
        table.add_column(name, justify=side, min_width=max((len(word) for word in name.split()), default=0))
    for row in rows:
        table.add_row(*row)
    return table
