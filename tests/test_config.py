"""Configs: loading, overrides and their errors, JSON."""

import pytest

from t3d.core import config as configs
from t3d.core.errors import UsageError

TEXT = """
from configs import common
def get_config(variant='tiny'):
    config = common.defaults()
    config.update({'system': 'dummy', 'optimizer': {'learning_rate': 1e-3, 'name': 'adam'}})
    config.update({'sizes': [1, 2], 'big': variant == 'big'})
    return config
"""


@pytest.fixture
def path(tmp_path):
    file = tmp_path / 'example.py'
    file.write_text(TEXT)
    return str(file)


def test_variant_and_overrides(path):
    overrides = ['optimizer.learning_rate=1', 'batch=16', 'optimizer.name=sgd', 'sizes=[3,4]', 'big=false']
    config = configs.load(f'{path}:big', overrides)
    assert config.optimizer.learning_rate == 1.0 and isinstance(config.optimizer.learning_rate, float)
    assert (config.batch, config.optimizer.name, config.sizes, config.big) == (16, 'sgd', (3, 4), False)
    assert configs.load(path).big is False and configs.load(f'{path}:big').big is True


@pytest.mark.parametrize(
    'override, says',
    [
        ('bach=3', "Did you mean 'batch'"),
        ('optimizer.learnin_rate=3', "Did you mean 'optimizer.learning_rate'"),
        ('optimizer=3', 'optimizer.name'),
        ('batch=1.5', 'batch=1.5: wanted a whole number from 1 to 1048576 (examples at each step). Nearest: batch=2.'),
        ('batch=many', "batch='many': wanted a whole number from 1"),
        ('big=1', 'wanted bool'),
        ('batch', 'name=value'),
        ('batch=0', 'batch=0: wanted a whole number from 1 to 1048576 (examples at each step). Nearest: batch=1.'),
        ('steps=-3', 'steps=-3: wanted a whole number from 1 to 2147483647 (optimizer steps in all). Nearest: steps=1.'),
    ],
)
def test_bad_override(path, override, says):
    with pytest.raises(UsageError) as error:
        configs.load(path, [override])
    assert says in str(error.value)


def test_only_what_is_near_is_proposed_and_where_the_keys_are_listed():
    for override, says in (
        ('nokey=3', "unknown config key 'nokey'. `t3d train CONFIG --dry-run` lists them."),
        ('bach=3', "unknown config key 'bach'. Did you mean 'batch'? `t3d train CONFIG --dry-run` lists them."),
        ('learning_rate=1', "unknown config key 'learning_rate'. Did you mean 'optimizer.learning_rate'? `t3d train"),
    ):
        with pytest.raises(UsageError) as error:
            configs.load('instant3d:tiny', [override])
        assert str(error.value).startswith(says)
    assert (
        configs.unknown('tyo', ('toy', 'furniture'), 'set') == "unknown set 'tyo'. Did you mean 'toy'? Known: toy, furniture."
    )
    assert configs.unknown('size', ('a.size', 'b.size'), 'key').startswith(
        "unknown key 'size'. Did you mean 'a.size' or 'b.size'?"
    )
    assert configs.unknown('ffhq', ('toy', 'furniture'), 'set') == "unknown set 'ffhq'. Known: toy, furniture."


def test_unknown_config_lists_the_known_ones():
    with pytest.raises(UsageError, match='Known: .*instant3d'):
        configs.load('instant4d')
    with pytest.raises(UsageError, match="Did you mean 'instant3d'"):
        configs.load('configs/instant4d.py:tiny')


def test_unknown_variant_is_a_usage_error():
    with pytest.raises(UsageError, match='there are tiny, .*, pod_sds$'):  # none is near
        configs.load('instant3d:huge')
    with pytest.raises(UsageError, match=r"'tinny' of instant3d: there are tiny, .*, pod_sds\. Did you mean 'tiny'\?"):
        configs.load('instant3d:tinny')


def test_json_round_trip_and_lock(path):
    config = configs.load(path)
    again = configs.from_json(configs.to_json(config))
    assert configs.differences(config, again) == {} and again.sizes == (1, 2)
    with pytest.raises(AttributeError):
        again.bach = 3


def test_differences():
    old, new = {'a': 1, 'b': {'c': (1, 2), 'd': 1}}, {'a': 1, 'b': {'c': [1, 3]}, 'e': 2}
    assert configs.differences(old, new) == {'b.c': ((1, 2), (1, 3)), 'e': (configs.MISSING, 2), 'b.d': (1, configs.MISSING)}
