"""`python -m launch.bench render ...`: the same as `t3d bench render ...`."""

import sys

from t3d.train import bench

if __name__ == '__main__':
    sys.exit(bench.main(sys.argv[1:]))
