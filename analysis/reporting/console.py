"""Prints sentences, tables and a progress bar on the terminal. Does not know the types of the answers."""

import io
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich import box
from rich.console import Console, JustifyMethod
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 140


@dataclass(frozen=True, kw_only=True)
class ProgressBar:
    """A progress bar on stderr; shows nothing if stderr is not a terminal."""

    task: Callable[..., Callable[[int], None]]
    """Begins a task with `task(name, total=...)`; returns a function to call with the size of each step."""


@contextmanager
def progress(*, after_s: float = 0.0) -> Iterator[ProgressBar]:
    """Shows a progress bar while the `with` block runs; the bar disappears at the end.

    after_s: time that must have passed, so that work that ends soon shows none.
    """
    began_s = time.monotonic()
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:

        def task(name: str, *, total: int) -> Callable[[int], None]:
            identity = bar.add_task(name, total=total, visible=after_s <= 0)
            return lambda by: bar.update(identity, advance=by, visible=time.monotonic() - began_s >= after_s)

        yield ProgressBar(task=task)


def print_error(sentence: str) -> None:
    """Prints one sentence on stderr."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(sentence, markup=False)


def print_plain(text: str) -> None:
    """Prints a text on stdout unchanged."""
    sys.stdout.write(f"{text}\n")


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of a Markdown table, with an empty line at the end."""
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join(["--:"] * len(head)) + "|"]
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [*lines, *["| " + " | ".join(row) + " |" for row in cells], ""]


# The terminal.


class Output(Console):
    """Standard output as a console.

    In files and pipes, the console is at least PLAIN_WIDTH characters wide. A closed pipe (`| head`) causes
    no error. Characters that the encoding lacks become question marks.
    """

    def __init__(self) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")
        super().__init__(highlight=False)
        if not self.is_terminal:
            self.width = max(self.width, PLAIN_WIDTH)

    def on_broken_pipe(self) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show_list(out: Console, title: str, lines: Sequence[str]) -> None:
    """Prints a title and a list of lines; prints nothing if the list is empty."""
    if not lines:
        return
    out.print()
    print_indented(out, title, style="bold")
    for line in lines:
        print_indented(out, f"- {line}")


def print_indented(out: Console, text: str, *, style: str = "") -> None:
    """Prints an indented text: wrapped on a terminal, otherwise in one line."""
    if out.is_terminal:
        out.print(Padding(Text(text, style=style), (0, 0, 0, 2), expand=False))
    else:
        out.print(f"  {text}", soft_wrap=True, markup=False)


def terminal_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Makes a table for the terminal.

    Columns are right-aligned. Only a first column with the heading "wall" is left-aligned.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for place, name in enumerate(head):
        side: JustifyMethod = "left" if place == 0 and head[0] == "wall" else "right"
        table.add_column(name, justify=side, min_width=max((len(word) for word in name.split()), default=0))
    for row in rows:
        table.add_row(*map(Text, row))  # words of a server are no markup
    return table
