"""`python -m launch.export ...`: the same as `t3d export ...`, for launchers that start modules."""

import sys

from t3d import cli

if __name__ == '__main__':
    sys.exit(cli.main(['export', *sys.argv[1:]]))
