"""Instant3D: text to a triplane in one forward pass (arXiv 2311.08403).

prompt -> tokens -> text tower -> conditional decoder (+ noise) -> three planes -> MLP -> density and albedo -> rays -> image.

What holds the renders to their prompts is `config.supervision`:

- `photometric`: the colour, mask and (optionally) depth of rendered views of captioned objects.
- `rays`: the same, and what lies on each sample of a ray, along rays of scenes in closed form or through pixels of pictures of
  any size, which the data pipeline gathers.
- `imle`, `codes`: the same for captions that are true of many objects. The style noise is, of several that are drawn for each
  object, the one whose scene is nearest to it, or a learned code of the object.
- `places`: the same captions, each of which gives its objects noises of their own.
- `sds`: score distillation, as in the paper: a text-to-image or multi-view model, `given.prior`, judges whole renders from
  random cameras. Its data are prompts alone.
- `sds+clip`: with the paper's CLIP loss, by `given.clip`.

Differences from the paper:
- The text tower has CLIP's shape. Small configs train it from scratch with the decoder; the paper uses the frozen tower of
  Stable Diffusion (`text.frozen`).
- Planes are corrected (`orthogonal`), where the released code inherits EG3D's duplicated plane; `plane_axes='legacy'` is there.
- Plain linear layers, not equalised ones, in the text branches and the point MLP. Parameter shapes are the released ones.
- The object lives in [-1, 1]^3 and rays are clipped to that box; the released code has a box of side 3.5.
- Small configs start the sigmoid at 0.7 instead of 0.5, scale the density by 20, have no central blob and little style noise;
  their density, orientation and smoothness terms weigh nothing, and the learning rate follows a cosine.
- `photometric` draws pixels at random from each view, half of them near the object; `rays` has most of them on
  objects and at their edges; `sds` renders whole views.
- The density term compares random points of the box, and smoothness the normals where rays end; the paper gives no weights.
- Without `given.clip`, adaptive negatives compare pictures by their colours in 8 x 8 cells; their weights are threestudio's.
- `dtype` bfloat16 is for the decoder; sampling, MLP, compositing and losses are float32.
"""

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from t3d.core import accumulate, optim, replicas, tokens, tree
from t3d.core.config import unknown
from t3d.core.errors import UsageError
from t3d.core.outputs import Field, only_prompts
from t3d.core.system import System, TrainState
from t3d.diffusion import guide, likeness
from t3d.fields.text_field import TextField
from t3d.nets import text_condition, text_decoder
from t3d.systems.instant3d_supervision import SUPERVISIONS

INWARD, OUTWARD = r'(query|key|value|query_key|proj_in|mlp_in|in)/kernel$', r'(out|proj_out|mlp_out)/kernel$'
TAKES = {'prior': guide.KINDS, 'clip': (likeness.Likeness,)}
SHARDING = (
    (r'(^|/)extras/|(^|/)codes$', P()),  # the visits of prompts, what is kept for objects: every device reads any of them
    # Scanned stacks have a layer axis in front; convolutions go by the fallback rule
    # Cut along the outputs: cut along the inputs, XLA would gather the activations, whose batch lies on 'fsdp', not the kernel.
    # (80 outputs at the least in the released size: where fsdp x tensor does not divide them, the log says what is left out.)
    (r'/(plane|style)_text/kernel$', P(None, ('fsdp', 'tensor'))),  # plane_text: 45 % of all parameters in the released size
    (r'/rest/(.*/)?affine/kernel$', P(None, None, ('fsdp', 'tensor'))),
    (r'/affine/kernel$', P(None, ('fsdp', 'tensor'))),
    (r'/(layers|rest)/(.*/)?' + INWARD, P(None, 'fsdp', 'tensor')),
    (r'/(layers|rest)/(.*/)?' + OUTWARD, P(None, 'tensor', 'fsdp')),
    (r'/(decoder|text)/(.*/)?' + INWARD, P('fsdp', 'tensor')),
    (r'/(decoder|text)/(.*/)?' + OUTWARD, P('tensor', 'fsdp')),
)


def make(config, given=None) -> System:
    """The system of a config (configs/instant3d.py): sections text, decoder, field, render, loss, optimizer; with
    `supervision='rays'` also rays, with 'imle' also seeds, with 'codes' also codes, with
    'places' also places, with 'sds' cameras and distill.

    Args:
      given: {'prior': a text-to-image or a multi-view model} for 'sds', {} for the others.
    """
    text_condition.check(config.text)
    text_decoder.check(config.decoder)
    model = TextField(config)
    optimizer = optim.adamw(**config.optimizer, total=config.steps)
    name = config.get('supervision', 'photometric')  # weights from before there was another
    if name not in SUPERVISIONS:
        raise UsageError(unknown(name, SUPERVISIONS, 'supervision'))
    supervision = SUPERVISIONS[name](config, model, given or {})
    draw = supervision.noise or (lambda params, key, count: model.noise(key, count))
    frozen = ('text',) if config.text.frozen else ()
    parts = config.get('accumulate', 1)
    if parts > 1 and jax.eval_shape(supervision.extras):
        raise UsageError(
            f'accumulate={parts} with supervision={name!r}, whose steps remember prompts or objects: set accumulate=1 and a '
            'smaller batch.'
        )

    def init(key, batch, given=None) -> TrainState:
        params = {**model.init(key, batch['tokens'][:1]), **supervision.learned(key)}
        opt_state = optimizer.init(optim.trained(params, frozen))
        return TrainState(jnp.zeros((), jnp.int32), params, opt_state, tree.copy(params), supervision.extras())

    def train_step(state: TrainState, batch, key, given=None):
        def loss_fn(trained, batch, key):
            return supervision.loss({**state.params, **trained}, state.extras, given, batch, key, state.step)

        gradients = accumulate.value_and_grad(loss_fn, parts)
        (_, (metrics, extras)), grads = gradients(optim.trained(state.params, frozen), batch, key)
        grads, metrics = replicas.mean((grads, metrics))
        params, opt_state = optim.update(optimizer, state, grads, frozen)
        params['field'] = {**params['field'], 'alpha': model.alpha(state.step)}
        state = state.replace(extras=extras)
        return optim.advance(config, state, params, opt_state, {**metrics, 'grad_norm': optax.tree.norm(grads)})

    def preview(params, batch, key, given=None) -> jax.Array:
        noise = draw(params, key, batch['tokens'].shape[0])
        return supervision.preview(model.scene_from_noise(params, batch['tokens'], noise), batch)

    def generate(params, requests, keys, given=None) -> list[Field]:
        prompts = only_prompts(requests, config.system)
        scenes = generate_scenes(params, jnp.asarray(model.text.tokenize(prompts)), keys)
        camera = {'radius': config.render.radius, 'fov': config.render.fov}
        each = [jax.tree.map(lambda leaf, k=k: leaf[k], scenes) for k in range(len(prompts))]
        return [
            Field(prompt, scene, model.field_at, model.render_one, 1.0, camera)
            for prompt, scene in zip(prompts, each, strict=True)
        ]

    def check(requests) -> None:
        tokens.check_prompts(config.text, only_prompts(requests, config.system))

    @jax.jit
    def generate_scenes(params, ids, keys):
        noise = jax.vmap(lambda key: draw(params, key, 1)[0])(keys)
        scene = model.scene_from_noise(params, ids, noise)
        return {
            'planes': scene['planes'],
            'field': jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (ids.shape[0], *leaf.shape)), scene['field']),
        }

    return System(init, train_step, preview, generate, check, ('ema',), SHARDING, supervision.batch_spec)
