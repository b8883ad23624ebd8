"""Looks for inputs that make gnfast silently wrong, crash or hang; `python -m tests.hunt --help`."""
