"""The batch of systems that learn from prompts alone, their judge being another model: `data.kind=prompts`.

| key of `data` | meaning |
|---|---|
| prompts | a grammar of t3d.data.prompts: toy, animals, portraits, daily_life |
| path | a text file in its place, one prompt a line (t3d.core.prompts) |
| split | train, test (held out) or all; of a file a tenth is held out, by the hash of each prompt |
"""

from collections.abc import Callable

import numpy as np

from t3d.core import prompts, tokens
from t3d.core.errors import UsageError
from t3d.data import prompts as grammars
from t3d.data.sets import caption_words, shapes
from t3d.data.sets.captions import vocabulary

NEEDS = ('data.prompts', 'data.path', 'data.count', 'text.length')
FILE = 'file'  # the name under which the prompts of a file are divided


class Prompts:
    """Random access to the prompts of a split; `source[i]` is {'prompt', 'captions', 'index'}.

    Attributes:
      every: all prompts of the set in their order; `index` is the place among these, whatever the split.
    """

    def __init__(self, data, split: str):
        self.path = data.path
        if data.path:
            self.every = tuple(dict.fromkeys(prompts.read(data.path)))
            chosen = [grammars.belongs(FILE, prompt, split) for prompt in self.every]
        else:
            self.every = grammars.prompts(data.prompts)
            some = set(grammars.prompts(data.prompts, split))
            chosen = [prompt in some for prompt in self.every]
        self.places = np.flatnonzero(chosen)
        if not len(self.places):
            raise UsageError(
                f'{data.path} has {len(self.every)} prompts, of which none is in data.split={split!r}: set data.split=all.'
            )

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict:
        place = int(self.places[int(index)])
        return {'prompt': self.every[place], 'captions': (self.every[place],), 'index': np.int32(place)}

    def __repr__(self) -> str:
        return f'Prompts({len(self)} of {len(self.every)})'


def make(config, split: str | None = None, batch_spec: dict | None = None) -> tuple[Prompts, Callable]:
    """(source, transform) of a config; UsageError for a prompt that its tokenizer cannot read whole, sides included."""
    source = Prompts(config.data, split or config.data.split)
    sided = 'sides' in (batch_spec or {})
    captions = (text for prompt in source.every for text in (prompts.with_sides(prompt) if sided else (prompt,)))
    caption_words.check(captions, config.text, str(config.data.path or config.data.prompts))
    return source, example(config, sided)


def example(config, sided: bool) -> Callable[[dict, np.random.Generator], dict[str, np.ndarray]]:
    """The transform of a config: 'tokens' int32 [N], 'index' int32, and where `sided` 'sides' int32 [4, N]."""
    tokenize = tokens.make(config.text)

    def transform(record: dict, random: np.random.Generator) -> dict[str, np.ndarray]:
        made = {'tokens': tokenize([record['prompt']])[0], 'index': record['index']}
        return made | ({'sides': tokenize(prompts.with_sides(record['prompt']))} if sided else {})

    return transform


def preview(config, batch_spec: dict | None = None) -> tuple[dict[str, np.ndarray], list[str]]:
    """Held-out prompts, evenly spread over the set, and their texts; of a file without any, those trained on."""
    try:
        source = Prompts(config.data, 'test')
    except UsageError:
        source = Prompts(config.data, 'all')
    transform = example(config, 'sides' in (batch_spec or {}))
    count = min(config.preview.rows, config.batch)
    records = [source[int(k)] for k in np.linspace(0, len(source) - 1, count)]
    rows = [transform(record, None) for record in records]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}, [record['prompt'] for record in records]


def resolve(config):
    """The config with the number of its prompts."""
    if not config.data.count:
        with config.unlocked():
            config.data.count = len(Prompts(config.data, 'all').every)
    return config


def words(config) -> list[str]:
    """The vocabulary of a config's prompts and of the sides, by alphabet; of `toy` that of all names of its objects."""
    if config.data.path or config.data.prompts != 'toy':
        every = Prompts(config.data, 'all').every
    else:
        every = [caption for scene in shapes.singles('all') for caption in scene.captions]
    return sorted(vocabulary([*every, *prompts.SUFFIXES]))


def captions(config):
    """Every prompt of a config's split."""
    source = Prompts(config.data, config.data.split)
    return (source[k]['prompt'] for k in range(len(source)))
