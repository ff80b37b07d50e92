"""Defaults every config starts from: device mesh, logging, previews, checkpoints.

A config file takes them and adds its own keys:

    from configs import common

    def get_config(variant='tiny'):
      config = common.defaults()
      config.update({'system': 'instant3d', 'batch': 8, ...})
      return config
"""


def defaults():
    """The keys the training loop reads, as a ConfigDict that is still open for more keys."""
    from ml_collections import ConfigDict

    return ConfigDict(
        {
            'system': '',
            'seed': 0,
            'steps': 1000,  # optimizer steps in all
            'batch': 8,  # global batch size, over all devices
            'dtype': 'float32',  # of computation; parameters and optimizer are always float32
            'mesh': {'data': -1, 'fsdp': 1, 'tensor': 1},  # devices along each axis; one may be -1 = the rest
            'fsdp_floor': 2**20,  # bytes; smaller arrays are not offloaded, nor sharded over 'fsdp' unless a rule says so
            'offload': '',  # 'optimizer': its state lies in the host's memory between steps; '': on the devices
            'log_every': 50,
            'preview_every': 500,  # 0: only at the end
            # keep: the latest ones; keep_every: multiples kept for good, 0 for none; local: a fast folder of each machine, such
            # as /dev/shm/t3d, for checkpoints every local_every steps of which the last two stay; '' for none
            'checkpoint': {'every': 500, 'keep': 3, 'keep_every': 0, 'best': 'loss', 'local': '', 'local_every': 50},
            'loader': {'threads': 1, 'prefetch': 4},  # batches made ahead, and by how many threads
            'evaluate': (),  # evaluators of t3d/evaluate/table.py, or modules of your own
            'must_match': (),  # keys that must have the same values in the weights that --init-from names
            'saves_memory': ('batch',),  # keys to halve, or to set if they are false, when the device's memory runs out
        }
    )
