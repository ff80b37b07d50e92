"""The `toy_open` source: the large single objects of `toy` under captions that leave one attribute open.

"a red object" is true of each shape in red, "a cube" of a cube in each colour. So it is known of every caption which objects
there are, and what a model of many answers draws can be judged exactly.
"""

from t3d.core.errors import UsageError
from t3d.data.sets import shapes, toy

WORDS = tuple(sorted({*toy.WORDS, 'object'}))
light = toy.light


def captions(scene: shapes.Scene) -> tuple[str, str]:
    """The caption that leaves the shape open, and the one that leaves the colour open."""
    colour, shape = scene.attributes['colour'], scene.attributes['shape']
    return f'{shapes.article(colour)} {colour} object', f'a {shape}'


def things(split: str) -> list[shapes.Scene]:
    """The objects of a split: `train` 24, `test` 8, `all` 32."""
    large = [scene for scene in shapes.singles(split) if scene.attributes['size'] == 'large']
    return [scene._replace(captions=captions(scene)) for scene in large]


def groups(split: str) -> dict[str, list[shapes.Scene]]:
    """{caption: the objects of a split that it is true of}, in a fixed order: first those that leave the shape open."""
    every = things(split)
    names = [scene.captions[place] for place in (0, 1) for scene in every]
    return {name: [scene for scene in every if name in scene.captions] for name in dict.fromkeys(names)}


class OpenSource(toy.ToySource):
    """Views of the objects of a split; as toy.ToySource.

    Attributes:
      objects: how many there are.
    """

    def __init__(self, split: str, **options):
        super().__init__(split, **options)
        self.singles = things(split)
        self.objects = len(self.singles)
        self.length = self.objects * options['poses']

    def text(self, index: int) -> dict:
        """Captions of record `index`, without its pictures."""
        return {'captions': self.scene(index).captions}

    def number(self, index: int) -> int:
        """Which object record `index` shows."""
        return int(index) % self.objects


class OpenSolids(OpenSource):
    """The same in closed form, as toy.SolidSource."""

    record_of = toy.SolidSource.record_of


def options(data) -> dict:
    """Those of OpenSource in a config's `data` section."""
    if data.get('scenes', 'singles') != 'singles':
        raise UsageError(f'data.scenes={data.scenes!r}: toy_open has single objects only, data.scenes=singles.')
    return {**{name: data[name] for name in toy.OPTIONS}, **toy.rig_options(data)}


def open_set(data, split: str) -> OpenSource:
    """The source of a config's `data` section."""
    return OpenSource(split, **options(data))


def open_solids(data, split: str) -> OpenSolids:
    """The same objects and cameras in closed form."""
    return OpenSolids(split, **options(data))


def preview_records(data, count: int, views: int) -> list[dict]:
    """Objects of one caption after another from `views` sides, front first; half of them with the shape left open."""
    azimuth, elevation = toy.around(views)
    pairs = [(caption, scene) for caption, scenes in groups('all').items() for scene in scenes]
    half = (count + 1) // 2
    chosen = pairs[:half] + pairs[len(pairs) // 2 :][: count - half]
    scenes = [scene._replace(captions=(caption,)) for caption, scene in chosen]
    return [toy.record(scene, azimuth, elevation, data.size, data.supersample) for scene in scenes]
