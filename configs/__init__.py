"""Configs of every system: `configs/<system>.py` with `get_config(variant)`."""
