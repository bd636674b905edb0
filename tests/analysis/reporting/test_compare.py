"""A comparison as text, as a page and as files."""

import re

import pytest

from analysis.compare.__main__ import main
from testing.runs.answers import comparison_row
from testing.runs.virtual import read_json, write_short_run


def test_the_forms_say_the_same_and_only_output_writes(baseline, smaller, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([str(baseline), str(smaller)]) == 0
    text = capsys.readouterr().out
    first = text.strip().splitlines()[0]
    ends = re.search(r"before holds more users: ([\d.]+) to ([\d.]+) times as many", text)
    assert ends is not None
    assert re.search(r"^ *maximum users .* yes *$", text, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []
    assert main([str(baseline), str(smaller), "--format", "markdown", "--output", "out"]) == 0
    said = capsys.readouterr().out
    assert said == (tmp_path / "out" / "compare.md").read_text()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "compare.html", "compare.json", "compare.md",
    ]  # fmt: skip
    found = read_json((tmp_path / "out" / "compare.json").read_bytes())
    users = comparison_row(found, "max_users")
    assert users.different == "yes"
    low, high = users.ratio_interval
    assert [float(end) for end in ends.groups()] == pytest.approx([1 / high, 1 / low], abs=0.006)
    before, _ = (answer.max_users for answer in found.answers)
    assert before > 0
    assert first.startswith(f"before: plan for {before} users")
    assert said.startswith(f"# {found.answers[0].model}: before (A) and smaller (B)\n")


def test_the_page_is_self_contained_and_escapes_names(baseline, tmp_path):
    evil = write_short_run(tmp_path / "evil", seed=3, info={"model": "<script>alert(1)</script>"})
    assert main([str(baseline), str(evil), "--output", str(tmp_path)]) == 0
    page = (tmp_path / "compare.html").read_text()
    assert "<script>" not in page
    assert not re.search(r"""(src|href)=["'](?!#)""", page)
    assert "prefers-color-scheme: dark" in page
    assert page.count("<svg") == 5
    assert "None" not in page


def test_a_number_of_users_that_is_only_a_lower_bound_is_not_compared(baseline, tmp_path, capsys):
    calm, quiet = (
        write_short_run(tmp_path / name, seed=seed, levels=(1, 8))
        for name, seed in (("calm", 5), ("quiet", 6))
    )
    for runs, sentences in (
        (
            (baseline, calm),
            "The number of users cannot be compared: calm met no wall. before met the KV",
        ),
        ((calm, quiet), "The number of users cannot be compared: calm and quiet met no wall. *\n"),
    ):
        assert main([*map(str, runs)]) == 0
        text = capsys.readouterr().out
        assert re.search(sentences, text)
        assert "No difference in the number of users" not in text
