"""The answers as types: capacity.json, compare.json, and the JSON of sizing and the twin.

Knows no maths and no words."""
