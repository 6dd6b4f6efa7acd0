"""One module per question; `run` of each asks it of all contestants in turn."""
