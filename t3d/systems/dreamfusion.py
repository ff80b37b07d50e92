"""DreamFusion: a prompt to an object by score distillation into a field of its own (arXiv 2209.14988), in populations.

prompt -> field (hash grid, dense grid, triplane, MLP) -> random cameras -> renders -> a prior's guidance -> gradient -> field.

P prompts are optimised at once (`config.prompts`): their fields are leaves [P, ...], their renders one batch for the prior, and
each has keys made of its own text, so that a prompt's object is the same in every population.

Differences from the paper:
- The prior is whatever is given: a text-to-image model of ours, a Stable Diffusion folder, or a multi-view model; Imagen is not
  public. Adam in place of Distributed Shampoo.
- The field is a grid with a small MLP by default (threestudio's and Magic3D's choice); `scene.kind='mlp'` is NeRF's network
  with Fourier features, without mip-NeRF 360's integrated encoding.
- Lights stand where threestudio puts them; shading begins at `shading.start` and is drawn for each view.
- The background is a grey level, or random where `render.random_background` says so, in place of an environment network.
- Objects are in [-1, 1]^3 and rays are cut to that cube; there is no bounding sphere of 1.4.
"""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

from t3d.core import cadence, numerics, optim
from t3d.core.errors import UsageError
from t3d.core.outputs import Field, only_prompts
from t3d.core.system import System, TrainState
from t3d.diffusion import distill, guide
from t3d.diffusion.prior import MultiViewPrior
from t3d.fields import scene_fields
from t3d.geom import camera_draws, cameras, occupancy, shading, volume
from t3d.geom.rays import Rays, ray_box

SHARDING = ((r'(^|/)(params|mu|nu)/', P(('data', 'fsdp'))),)  # the axis of prompts, like a batch
TAKES = {'prior': guide.KINDS}
CHUNK = 2**14  # rays rendered at once for people to see


def make(config, given) -> System:
    """The system of a config (configs/dreamfusion.py): sections scene, cameras, render, shading, distill, loss, optimizer.

    Args:
      given: {'prior': a text-to-image or a multi-view model}.
    """
    model = Model(config, given)
    optimizer = optim.adam_of_parts(config.optimizer, config.steps)

    def init(key, batch, given) -> TrainState:
        params = jax.vmap(lambda key: scene_fields.init(key, model.options))(model.keys(key))
        side = config.occupancy.cells
        extras = {'cells': jnp.zeros((len(model.prompts), side, side, side), jnp.float32)} if side else {}
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), {}, extras)

    def train_step(state: TrainState, batch, key, given):
        extras = model.looked(state.extras, state.params, key, state.step)
        grads, metrics = model.gradient(state.params, extras, given, key, state.step)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        rate = optim.rate(config.optimizer, state.step, config.steps)
        metrics = {**metrics, 'grad_norm': optax.tree.norm(grads), 'lr': rate}
        return TrainState(state.step + 1, params, opt_state, {}, extras), metrics

    def preview(params, batch, key, given) -> jax.Array:
        shown = cameras.turntable(PREVIEWED, elevation=config.preview.elevation, radius=model.radius, fov=model.fov)
        rays = cameras.rays(shown, config.preview.size, config.preview.size)
        images = jax.lax.map(lambda scene: jnp.clip(model.render(scene, rays).features, 0.0, 1.0), params)
        return numerics.side_by_side(images)

    def generate(params, requests, keys, given) -> list[Field]:
        made = []
        for prompt in only_prompts(requests, config.system):
            place = model.place(prompt)
            scene = jax.tree.map(lambda leaf, k=place: leaf[k], params)
            made.append(Field(prompt, scene, model.field_at, model.render, 1.0, {'radius': model.radius, 'fov': model.fov}))
        return made

    def check(requests) -> None:
        for prompt in only_prompts(requests, config.system):
            model.place(prompt)

    return System(init, train_step, preview, generate, check, ('params',), SHARDING, {})


PREVIEWED = 4  # views of each prompt in a preview
DRAWS = ('cells', 'cameras', 'jitter', 'light', 'mode', 'background', 'guide')  # of a step


class Model:
    """The field, the renderer and the guide of a config; holds no parameters."""

    def __init__(self, config, given):
        self.config = config
        self.options = scene_fields.Options(**config.scene)
        scene_fields.check(self.options)
        if config.render.size % config.render.chunks:
            raise UsageError(
                f'render.chunks={config.render.chunks} does not divide the rows of render.size={config.render.size}.'
            )
        self.ranges = camera_draws.from_section(config.cameras)
        prior = guide.prior_of(given)
        if config.distill.negatives == 'adaptive':
            raise UsageError(
                "distill.negatives='adaptive' compares visits of many prompts: set 'fixed' for a prompt of its own."
            )
        self.guide = guide.make(prior, guide.Options(**config.distill))
        self.together = isinstance(prior, MultiViewPrior)
        self.prompts = tuple(config.prompts or config.export.prompts)
        if not all(prompt.strip() for prompt in self.prompts):
            raise UsageError(f'prompts={self.prompts!r}: no object can be made of an empty prompt: leave it out.')
        twice = [prompt for n, prompt in enumerate(self.prompts) if prompt in self.prompts[:n]]
        if twice:
            raise UsageError(
                f'the same prompt twice, {twice[0]!r}: a population makes one object of each. For another take another '
                '--seeds, and an --out of its own.'
            )
        self.tokens = jax.tree.map(jnp.asarray, self.guide.tokens(list(self.prompts)))
        self.names = np.array([zlib.crc32(prompt.encode()) for prompt in self.prompts], np.uint32)
        self.radius, self.fov = (sum(ends) / 2.0 for ends in (self.ranges.radius, self.ranges.fov))

    def keys(self, key):
        """A key [P] for each prompt, made of its text."""
        return jax.vmap(lambda name: jax.random.fold_in(key, name))(jnp.asarray(self.names))

    def place(self, prompt: str) -> int:
        """The index of a prompt."""
        if prompt not in self.prompts:
            raise UsageError(
                f'no object was made for {prompt!r}: this run has {", ".join(map(repr, self.prompts))}. Ask for one of these, '
                f'or `t3d generate {prompt!r} --system {self.config.system}`, which makes it.'
            )
        return self.prompts.index(prompt)

    # ---------------------------------------------------------------------------------------------------------------- loss

    def gradient(self, params, extras, given, key, step):
        """(gradient, metrics) of one step: renders of all prompts from random cameras, guided by the prior.

        With several `render.chunks` an image is rendered in so many bands, each again when its gradient is pulled back, so
        that the memory of one band is enough; the gradient is the same.
        """
        config, size = self.config, self.config.render.size
        draw = camera_draws.ring if self.together else camera_draws.draw
        keys = {name: self.keys(jax.random.fold_in(key, n)) for n, name in enumerate(DRAWS)}
        drawn = jax.vmap(lambda key: draw(key, config.cameras.views, self.ranges))(keys['cameras'])
        lights, bands = self.lights(drawn, keys, step), self.bands(cameras.rays(drawn.cameras, size, size), extras, keys, step)
        render = lambda params, band: self.render_scenes(params, band, lights, step)
        judge = lambda bands: self.judge(whole(bands), given, drawn, keys, step)
        if config.render.chunks > 1:
            deferred = distill.deferred_grad(render, params, bands, judge)
            return deferred.grads, deferred.aux
        only = jax.tree.map(lambda leaf: leaf[0], bands)
        back = lambda params: judge(jax.tree.map(lambda leaf: leaf[None], render(params, only)))
        return jax.grad(back, has_aux=True)(params)

    def judge(self, seen, given, drawn, keys, step):
        """(loss, metrics) of what was rendered: {'colour' over black, 'opacity', 'orientation'}, [P, V, S, S, ...]."""
        colour, opacity = seen['colour'], seen['opacity']
        render = self.config.render
        background = volume.backgrounds(keys['background'], opacity.shape[1], render.background, render.random_background)
        images = colour + background * (1.0 - opacity[..., None])
        guided = self.guide.guide(given['prior'], self.tokens, images, drawn, keys['guide'], step)
        of_each = {
            'opacity': jax.vmap(lambda opacity: shading.opacity_loss(opacity, step))(opacity),
            'orientation': jnp.mean(shading.orientation_of(seen['orientation']), axis=(1, 2, 3)),
        }
        ramps = self.config.loss
        parts = {f'loss/{name}': optim.ramp(step, ramps[name]) * jnp.sum(value) for name, value in of_each.items()}
        shown = {'loss': guide.surprise(guided.metrics), **parts, **guided.metrics, 'opacity': jnp.mean(opacity)}
        return guided.loss + sum(parts.values()), shown

    # ----------------------------------------------------------------------------------------------------------- rendering

    def looked(self, extras, params, key, step):
        """The grids of what is occupied after another look, one step in `occupancy.every`."""
        if not extras:
            return extras
        key = jax.random.fold_in(jax.random.fold_in(key, DRAWS.index('cells')), 0)  # the same places for all prompts

        def density(points):
            raw, _ = scene_fields.raw_each(params, points, self.options, step)
            return scene_fields.density(raw, self.options)

        length = 2.0 / self.config.render.samples
        look = lambda cells: occupancy.update(cells, density, key, length=length, decay=self.config.occupancy.decay)
        every = self.config.occupancy.every
        return {'cells': cadence.once_in(every, step, look, lambda cells: cells, extras['cells'])}

    def bands(self, rays: Rays, extras, keys, step):
        """(rays, near, far, draws) of rays [P, V, S, S, 3] cut into `render.chunks` bands of rows, in front: [n, P, ...].

        The draws are those of the whole image, so that they do not depend on how it is cut.
        """
        render, (objects, views, height, width) = self.config.render, rays.origins.shape[:4]
        flat = jax.tree.map(lambda leaf: leaf.reshape(objects, -1, 3), rays)
        near, far = ray_box(flat, 2.0)
        if extras:
            least = {'warmup': self.config.occupancy.warmup, 'threshold': self.config.occupancy.threshold}
            near, far = jax.vmap(occupancy.limits)(occupancy.occupied(extras['cells'], step, **least), flat)
        u = jax.vmap(lambda key: volume.draws(key, near.shape[1:], render.samples, render.importance))(keys['jitter'])

        def cut(value, axis):
            """The rays of an axis are views x rows x columns; the bands of rows come to the front."""
            split = (views, render.chunks, height // render.chunks, width)
            value = jnp.moveaxis(value.reshape(*value.shape[:axis], *split, *value.shape[axis + 1 :]), axis + 1, 0)
            count = views * height // render.chunks * width
            return value.reshape(render.chunks, *value.shape[1 : 1 + axis], count, *value.shape[axis + 4 :])

        of_rays = jax.tree.map(lambda leaf: cut(leaf, 1), (flat, near, far))
        return (*of_rays, tuple(cut(value, 2) for value in u))

    def render_scenes(self, params, band, lights: shading.Light, step) -> dict[str, jax.Array]:
        """`render_band`, on a CPU one scene after the other: what a cache holds is faster than what is done at once.

        Several scenes are rendered again for their gradients, which takes less time than storing all that lies between.
        """
        if jax.default_backend() != 'cpu':
            return self.render_band(params, band, lights, step)

        def one(scene):
            out = self.render_band(*jax.tree.map(lambda leaf: leaf[None], scene), step)
            return jax.tree.map(lambda leaf: leaf[0], out)

        return jax.lax.map(one if len(self.prompts) == 1 else jax.checkpoint(one), (params, band, lights))

    def render_band(self, params, band, lights: shading.Light, step) -> dict[str, jax.Array]:
        """What the rays of a band see: 'colour' over black, 'opacity', the two channels 'orientation'; [P, V, rows, S, ...]."""
        rays, near, far, u = band
        views, size = lights.ambient.shape[1], self.config.render.size
        field = self.lit(params, lights, near.shape[1] // views, step)
        activation = lambda raw: scene_fields.density(raw, self.options)
        out = volume.render_at(field, rays, *u, near=near, far=far, density_activation=activation)
        shape = (near.shape[0], views, -1, size)
        features = out.features.reshape(*shape, 5)
        return {'colour': features[..., :3], 'opacity': out.opacity.reshape(shape), 'orientation': features[..., 3:]}

    def lights(self, drawn, keys, step) -> shading.Light:
        """A light [P, V] for each view, and how it is shown."""
        options, views = self.config.shading, self.config.cameras.views

        def one(key_light, key_mode, positions):
            kind = {'start': options.start, 'shaded': options.shaded, 'textureless': options.textureless}
            mode = shading.modes(key_mode, views, step, **kind, ambient=options.ambient)
            return shading.Light(
                shading.light_positions(options.light, key_light, positions, tuple(options.light_distance)), *mode
            )

        return jax.vmap(one)(keys['light'], keys['mode'], drawn.cameras.world_from_cam[..., :3, 3])

    def lit(self, params, light: shading.Light, pixels: int, step):
        """The renderer's field of points [P, N V `pixels`, 3], N a ray: raw density; shaded colour and orientation channels."""
        plain = lambda points: scene_fields.raw_each(params, points, self.options, step)
        views = light.ambient.shape[1]
        split = lambda value: value.reshape(value.shape[0], -1, views, pixels, value.shape[-1])  # [P, N, V, S S, 3]
        across = jax.tree.map(lambda leaf: leaf[:, None, :, None], light)  # [P, 1, V, 1, ...]

        def field(points, directions):
            if self.config.shading.start >= self.config.steps:  # never shaded: no normals are made
                density, features = plain(points)
                return density, jnp.pad(scene_fields.albedo(features), [(0, 0)] * (points.ndim - 1) + [(0, 2)])
            if self.config.shading.normals == 'fd':
                density, features, normals = shading.with_difference_normals(plain, points, self.config.shading.offset)
            else:
                density, features, normals = shading.with_normals(plain, points)
            colour = shading.shade(across, *(split(value) for value in (scene_fields.albedo(features), normals, points)))
            away = shading.orientation_channels(shading.facing_away(normals, directions))
            return density, jnp.concatenate([colour.reshape(*points.shape[:-1], 3), away], -1)

        return field

    # ------------------------------------------------------------------------------------------------------------- showing

    def render(self, scene, rays: Rays) -> volume.RenderOutput:
        """Field.render: one scene without light or shade, rays of any shape, over the background."""
        shape = rays.origins.shape
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, 3), rays)
        near, far = ray_box(flat, 2.0)
        out = volume.render_chunked(
            scene_fields.field(scene, self.options),
            flat,
            None,
            chunk=min(CHUNK, flat.origins.shape[0]),
            near=near,
            far=far,
            num_samples=self.config.render.samples_shown,
            num_importance=self.config.render.importance,
            density_activation=lambda raw: scene_fields.density(raw, self.options),
        )
        return volume.shown(out, self.config.render.background, shape)

    def field_at(self, scene, points):
        """Field.field: (density [N], rgb [N, 3])."""
        raw, features = scene_fields.raw(scene, points, self.options)
        return scene_fields.density(raw, self.options), scene_fields.albedo(features)


def whole(bands):
    """Images [P, V, S, S, ...] of bands [n, P, V, S / n, S, ...]."""
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 2).reshape(*leaf.shape[1:3], -1, *leaf.shape[4:]), bands)
