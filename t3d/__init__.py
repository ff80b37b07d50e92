"""t3d: text-to-3D in JAX. Importing the package loads nothing heavy; import the modules you use."""

__version__ = '0.1.0'
