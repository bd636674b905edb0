"""Words for runs that are left out because they differ from those that answer."""

from analysis.notes import NotPooled


def not_pooled_text(note: NotPooled) -> str:
    """A sentence: what differs, the runs' ids, and the flag that chooses them."""
    *first, last = note.differing
    names = f"{', '.join(first)} and {last} differ" if first else f"{last} differs"
    return f"Not pooled, because {names}: {', '.join(note.run_ids)} (choose with --run)."
