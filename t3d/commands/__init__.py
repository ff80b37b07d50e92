"""The words of the command line: a file each with `flags(command)` for its argparse parser and `run(args)`.

Nothing heavy is imported at the top of these files: `t3d --help` reads all of them.
"""
