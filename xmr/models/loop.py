"""Equal blocks of a network in one loop."""

import jax
import jax.numpy as jnp


def repeat(module, block, names, x, *others, remat=False):
  """Applies equal blocks in a loop, x -> block(x, *others).

  With unrolled residual blocks, XLA on CPUs recomputes the earlier sums in each later block, a
  third of a ResNet's time, and merges what remat recomputes with the original, which defeats remat.
  A loop avoids both and compiles only one block.

  Args:
    module: bound module whose variables hold those of each block under its name.
    block: unbound module.  names: of the blocks in their order.  x: array.
    others: further inputs of each block.
    remat: keep only the input of each block and recompute the rest in the backward pass.
  Returns:
    array like x; updated statistics are written to the module's variables.
  """
  collections = [name for name in ("params", "batch_stats") if module.has_variable(name, names[0])]
  each = [
    {collection: module.get_variable(collection, name) for collection in collections}
    for name in names
  ]
  mutable = ["batch_stats"] if module.is_mutable_collection("batch_stats") else []

  def step(x, variables):
    return block.apply(variables, x, *others, mutable=mutable)

  step = jax.checkpoint(step, prevent_cse=False) if remat else step
  x, moved = jax.lax.scan(step, x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *each))
  for collection, stacked in moved.items():
    for i, name in enumerate(names):
      module.put_variable(collection, name, jax.tree.map(lambda leaf, i=i: leaf[i], stacked))
  return x
