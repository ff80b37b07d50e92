"""Entry points for launchers that start modules: `python -m launch.train --config ...`."""
