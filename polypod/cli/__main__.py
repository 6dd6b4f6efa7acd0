"""`python -m polypod.cli`."""

from polypod.cli import app

app(prog_name="polypod")
