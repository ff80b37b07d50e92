"""t3d: text-to-3D in JAX. Importing the package loads nothing heavy; import the modules you use."""

import time

__version__ = '0.1.0'
IMPORTED = time.time()  # the source files that are younger may not be the code that runs
