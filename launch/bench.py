"""`python -m launch.bench render ...`: the same as `t3d bench render ...`."""

import sys

from t3d import cli

if __name__ == '__main__':
    sys.exit(cli.main(['bench', *sys.argv[1:]]))
