"""Exit statuses of all programs: 0 done, 1 an error to mend; nothing here imports JAX.

130 and 143: ended at once by SIGINT or SIGTERM, in training before there was anything to save.
"""

FAILED = 1
"""An error; the message says what to do."""
RESTART = 75
"""Stopped, with all progress saved, or without another process: the same command continues (`EX_TEMPFAIL`)."""
