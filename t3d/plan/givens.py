"""The models that a system is given, by their shapes: what a config names is described, and no weights are read.

A folder's settings say what its arrays are, so that a plan of Stable Diffusion's 1.3 G parameters takes no memory.
"""

import jax
from etils import epath

from t3d.core import precision
from t3d.core.errors import UsageError
from t3d.core.system import Given
from t3d.inference import given as givens
from t3d.inference import loading, priors


def abstract(config) -> dict[str, Given]:
    """{name: Given} of a config's `given` section, each with ShapeDtypeStructs; names with an empty value are left out.

    Raises:
      UsageError, FileNotFoundError: what a name stands for is not there; the message has the key.
    """
    values = {name: value for name, value in dict(config.get('given', {})).items() if value}
    return {name: _shapes(_one(name, value, config)) for name, value in values.items()}


def _one(name: str, value: str, config) -> Given:
    folder = epath.Path(loading.shipped().get(value, value))
    if priors.is_pipeline(value):
        from t3d.checkpoint import convert

        return priors.of_pipeline(convert.pipeline_shapes(value, dtype=precision.policy(config).compute), str(value))
    if not givens.is_config(value) and (folder / 'config.json').is_file():
        from t3d.core import config as configs

        own = configs.read(folder / 'config.json')
        if own.get('system') and not any(own.get('given', {}).values()):
            try:
                return loading.of_config(own, value)
            except UsageError as error:
                raise UsageError(f'given.{name}={value!r}: {error}') from error
    return loading.open_one(name, value, config=config)  # a description, or a model in closed form


def _shapes(one: Given) -> Given:
    return one._replace(params=jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), one.params))
