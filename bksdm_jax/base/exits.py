"""Exit statuses of all programs: 0 done, 1 an error to mend; nothing here imports JAX.

130 and 143: interrupted by SIGINT or SIGTERM before there was anything to save; the same command starts again.
"""

FAILED = 1
"""An error; the message says what to do."""
RESTART = 75
"""Stopped, with all progress saved, or without another process: the same command continues (`EX_TEMPFAIL`)."""
