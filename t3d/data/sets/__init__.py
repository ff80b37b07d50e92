"""The table of data sets: name -> module. Each has `open_set(data, split)`, a random-access source of posed records.

A record is {'captions': (text, ...), 'image' uint8 [V, H, W, 4] straight alpha, 'world_from_cam' [V, 4, 4], 'intrinsics'
[V, 3, 3], and what else the set knows: 'depth', 'name', 'attributes'}. A set whose pictures are lit in a known way has `light`.

A source has `text(index)` where captions can be read alone; they are then looked at before training; or `spoken`, their count,
where it was made with the set. One that is `streamed` has more objects than memory has room for: adapters keep none of them.
"""

from t3d.core import tables
from t3d.core.errors import UsageError

SETS = {
    'toy': 't3d.data.sets.toy',
    'toy_patterns': 't3d.data.sets.patterns',
    'toy_marked': 't3d.data.sets.marked',
    'toy_open': 't3d.data.sets.open_captions',
    'toy_endless': 't3d.data.sets.endless',
    'furniture': 't3d.data.sets.furniture_source',
    'posed': 't3d.data.sets.posed',
    'records': 't3d.data.sets.records',
}
# These have WORDS, the words of all their captions, and `preview_records(data, count, views)`.
PROCEDURAL = ('toy', 'toy_patterns', 'toy_marked', 'toy_open', 'toy_endless')
OTHERS = {
    'triplanes': 'it goes with configs/ganfusion_diffusion.py (data.kind=triplanes)',
    'prompts': 'it goes with configs/instant3d.py:sds (data.kind=prompts)',
    'eg3d': 'it goes with configs/ganfusion_gan.py (data.kind=single_view)',
}


def open_set(data, split: str):
    """The source of posed records that a `data` section names: one of the table, or a module of your own."""
    if data.name in OTHERS:
        raise UsageError(f'data.name={data.name!r} gives no posed views: {OTHERS[data.name]}.')
    return tables.find(data.name, SETS, 'data set (data.name)', 'open_set').open_set(data, split)


def open_solids(data, split: str):
    """The source of scenes in closed form (t3d.geom.solids) that a `data` section names; UsageError for sets of pictures."""
    module = tables.find(data.name, SETS, 'data set (data.name)', 'open_set')
    if not hasattr(module, 'open_solids'):
        raise UsageError(
            f'data.name={data.name!r} has no scenes in closed form, which rays.truth=solids reads: data.name=toy has. For rays '
            'of its pictures set rays.truth=pixels, and loss.depth=0 where it has no depth.'
        )
    return module.open_solids(data, split)


def light(name: str):
    """`(outward unit normals [N, 3]) -> [N]`, the factor by which a set's display colours are lit; None where none is known."""
    return (
        None if name in ('', *OTHERS) else getattr(tables.find(name, SETS, 'data set (data.name)', 'open_set'), 'light', None)
    )


def procedural(name: str):
    """The module of a set that is computed and not stored, None for the others."""
    return tables.find(name, SETS, 'data set (data.name)', 'open_set') if name in PROCEDURAL else None
