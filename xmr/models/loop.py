"""Equal blocks of a network in one loop."""

import jax
import jax.numpy as jnp


def repeat(module, block, names, x, *others, remat=False, random=()):
  """Applies equal blocks in a loop, x -> block(x, *others).

  With unrolled residual blocks, XLA on CPUs recomputes the earlier sums in each later block, a
  third of a ResNet's time, and merges what remat recomputes with the original, which defeats remat.
  A loop avoids both and compiles only one block.

  Args:
    module: bound module whose variables hold those of each block under its name.
    block: unbound module.  names: of the blocks in their order.  x: array.
    others: further inputs of each block.
    remat: keep only the input of each block and recompute the rest in the backward pass.
    random: names of the random streams that blocks draw from; each block gets its own key.
  Returns:
    array like x; updated statistics are written to the module's variables.
  """
  collections = [name for name in ("params", "batch_stats") if module.has_variable(name, names[0])]
  each = [
    {collection: module.get_variable(collection, name) for collection in collections}
    for name in names
  ]
  mutable = ["batch_stats"] if module.is_mutable_collection("batch_stats") else []

  keys = {
    name: jax.random.split(module.make_rng(name), len(names))
    for name in random
    if module.has_rng(name)
  }

  def step(x, given):
    variables, keys = given
    return block.apply(variables, x, *others, mutable=mutable, rngs=keys)

  step = jax.checkpoint(step, prevent_cse=False) if remat else step
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
  x, moved = jax.lax.scan(step, x, (stacked, keys))
  for collection, values in moved.items():
    for i, name in enumerate(names):
      module.put_variable(collection, name, jax.tree.map(lambda leaf, i=i: leaf[i], values))
  return x


def blocks(module, block, x, *others, layers, remat, trained=-1, random=()):
  """Applies `layers` equal blocks, named layer0 and so on, in the calling module.

  Args:
    module: the calling module.  block: makes one block, called as (*, name) or (*, parent=None).
    x: array.  others: further inputs of each block.  layers: their number.
    remat: recompute each block in the backward pass instead of keeping its activations; the blocks
      are then a loop, see `repeat`.
    trained: the gradient stops before the last `trained` blocks; -1 does not stop it.
    random: names of the random streams that blocks draw from; with remat the draws are others.
  Returns:
    array like x.
  """
  names = [f"layer{i}" for i in range(layers)]
  first = layers - trained if 0 <= trained <= layers else 0

  def applied(x, names):
    if remat and names and not module.is_initializing():
      return repeat(module, block(parent=None), names, x, *others, remat=True, random=random)
    for name in names:
      x = block(name=name)(x, *others)
    return x

  x = applied(x, names[:first])
  if 0 <= trained <= layers:
    x = jax.lax.stop_gradient(x)
  return applied(x, names[first:])
