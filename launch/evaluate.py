"""`python -m launch.evaluate RUN ...`: the same as `t3d eval RUN ...`."""

import sys

from t3d import cli

if __name__ == '__main__':
    sys.exit(cli.main(['eval', *sys.argv[1:]]))
