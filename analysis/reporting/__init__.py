"""Words for codes, tables, figures, HTML: the only place of analysis that prints or writes.

Knows no maths and reads no run."""
