"""What is asked of the server and when: lengths, prompts, conversations and arrival times, all seeded.

Knows no server and does no I/O except to read the files of prompts and traces that a user names."""
