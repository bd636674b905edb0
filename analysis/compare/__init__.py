"""Two runs side by side: their figures, whether they differ beyond chance, and the gate for CI.

Knows how levels are judged only through `analysis.capacity`, and no words."""
