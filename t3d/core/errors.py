"""The error for wrong input: its message is all the user needs."""


class UsageError(ValueError):
    """Something given is wrong. The message says what was given, what is wanted and what to do; commands print it alone."""
