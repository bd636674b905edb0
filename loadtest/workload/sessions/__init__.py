"""Recorded sessions: readers of their files, the book from which they are handed out, and the requests that
replay them. Knows no network and no clock."""
