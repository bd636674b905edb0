"""Words, tables, figures and HTML for answers: the only folder of the analysis that prints or writes files.

Knows no maths and reads no run."""
