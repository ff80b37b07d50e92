"""`python -m launch.generate ...`: the same as `t3d generate ...`, for launchers that start modules."""

import sys

from t3d import cli

if __name__ == '__main__':
    sys.exit(cli.main(['generate', *sys.argv[1:]]))
