"""What is asked of the server and when: lengths, prompts, conversations and arrival times, all seeded.

Knows no server and does no I/O but for the files of prompts and traces that a person names."""
