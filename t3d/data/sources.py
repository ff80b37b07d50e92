"""From a config's `data` section to records, training examples and the fixed batch that previews show.

A set (`data.name`, t3d.data.sets) gives posed records; an adapter (`data.kind`) makes of them the batch of one kind of system.
An adapter is a module with `make`, `preview` and `words` (or `resolve`), one of the table or your own; its NEEDS, if it
has one, are the keys of a config that it reads.
"""

from collections.abc import Callable
from types import ModuleType

from t3d.core import config as configs
from t3d.core import tables, tokens
from t3d.core.errors import UsageError
from t3d.data import sets

ADAPTERS = {
    'views': 't3d.data.adapters.views',  # posed RGBA views of captioned objects
    'rays': 't3d.data.adapters.rays',  # rays of captioned objects, of pictures of any size or in closed form
    'object_rays': 't3d.data.adapters.object_rays',  # the same, of objects with numbers
    'object_places': 't3d.data.adapters.object_places',  # the same, of objects with places under each caption
    'single_view': 't3d.data.adapters.single_view',  # one picture of an object
    'triplanes': 't3d.data.adapters.triplanes',  # pairs of seed and caption
    'prompts': 't3d.data.adapters.prompts',  # texts alone
}


def adapter(config) -> ModuleType:
    """The adapter of a config: that of `data.kind`, by default `views`."""
    name = config.data.get('kind') or ('triplanes' if config.data.get('name') == 'triplanes' else 'views')
    module = tables.find(name, ADAPTERS, 'adapter (data.kind)', 'make', 'preview')
    lacking = sorted(set(getattr(module, 'NEEDS', ())) - set(configs.flatten(config)))
    if lacking:
        raise UsageError(
            f'data.kind={name!r} reads {lacking[0]}, which this config does not have: {config.get("system", "its system")} '
            'learns from data of another kind. Leave data.kind as its own config has it.'
        )
    return module


def make(config, split: str | None = None, batch_spec: dict | None = None) -> tuple[object, Callable]:
    """(source, transform) of a config: `source[i]` is a record, `transform(record, random)` an example of the batch.

    Args:
      config: the run's config.
      split: overrides `config.data.split`.
      batch_spec: of its system: what the batch must hold; None for what every system of this kind reads.
    Raises:
      UsageError: unknown set, adapter or split.
      FileNotFoundError: a built data set is missing; the message has the command that builds it.
    """
    path, name = config.data.get('path', ''), config.data.get('name', '')
    if path and sets.procedural(name):
        raise UsageError(
            f'data.path={path!r}, but data.name={name!r} is made as it is needed and reads no files: leave the path out, or '
            'set data.name to the kind of what is there, for example posed.'
        )
    return adapter(config).make(config, split, batch_spec)


def describe(config, source) -> str:
    """What a run learns from: 'data: furniture, split train, 1234 records of /data/furniture/...'."""
    place = folder(source)
    records = f'{len(source)} records' + (f' of {place}' if place else ', made as they are needed')
    return f'data: {config.data.name}, split {config.data.split}, {records}'


def folder(source) -> str:
    """The folder or zip that a source reads; '' for one that makes its records."""
    while source is not None:
        place = getattr(source, 'folder', None) or getattr(source, 'path', None)
        if place:
            return str(place)
        source = getattr(source, 'source', None) or getattr(source, 'pictures', None)
    return ''


def preview(config, batch_spec: dict) -> tuple[dict, list[str]]:
    """A fixed batch of examples and their captions, for the contact sheet. Depends on the config alone."""
    return adapter(config).preview(config, batch_spec)


def resolve(config):
    """The config with what only the data knows filled in: an empty `text.words` becomes the data set's vocabulary, and prompts
    to export whose words are not in it the first captions.
    """
    if not config.get('data'):
        return config
    chosen = adapter(config)
    if hasattr(chosen, 'resolve'):
        config = chosen.resolve(config)
    if not hasattr(chosen, 'words'):
        return config
    text = config.get('text')
    if text is not None and not text.get('folder') and not text.words:
        words = tuple(chosen.words(config))
        with config.unlocked():
            text.words = words
            if prompts := _sayable(config, words, getattr(chosen, 'captions', None)):
                config.export.prompts = prompts
    return config


def _sayable(config, words: tuple[str, ...], captions) -> tuple[str, ...]:
    """Captions of the data in place of prompts that a closed vocabulary lacks words of, if they are those of the config's file
    and nobody chose them; () where they can stay.
    """
    prompts = tuple(config.get('export', {}).get('prompts', ()))
    spoken = {word for prompt in prompts for word in tokens.split_words(prompt)}
    if captions is None or config.text.open_vocabulary or spoken <= set(words):
        return ()
    try:
        written = configs.load(f'{config.system}:{config.variant}').export.prompts
    except (AttributeError, UsageError):
        return ()
    return tuple(dict.fromkeys(captions(config)))[: len(prompts)] if prompts == tuple(written) else ()


def default_folder() -> str:
    """Where built data sets live: $T3D_DATA, else ~/.cache/t3d/data."""
    from t3d.data.sets import furniture_source

    return str(furniture_source.data_root())
