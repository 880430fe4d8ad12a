"""Fine-tuning of pretrained models: frozen parts, and learning rates that fall with depth."""

import re

import jax

from xmr.models import lora

# Modules of a tower's backbone that follow its blocks; all others precede them.
BEHIND = ("norm", "pool")


def _layers(names, front):
  """Number of blocks of the tower whose paths begin with `front`; 0 if it has none."""
  found = (re.match(re.escape(front) + r"layer(\d+)/", name) for name in names)
  return max((int(each[1]) + 1 for each in found if each), default=0)


def depth(name, names):
  """The position of a parameter among the blocks of its tower.

  Args:
    name: its path, such as "image_encoder/backbone/layer3/mlp/up/kernel".
    names: paths of all parameters.
  Returns:
    (position, number of blocks L): 0 before the blocks, 1 .. L in them, L + 1 after them; None
    outside towers.
  """
  match = re.match(r"((?:image|text)_encoder/)backbone/(?:layer(\d+)/|(\w+))", name)
  front = f"{match[1]}backbone/" if match else ""
  layers = _layers(names, front) if match else 0
  if not match or not layers:
    encoder = re.match(r"((?:image|text)_encoder/)projection/", name)
    layers = _layers(names, f"{encoder[1]}backbone/") if encoder else 0
    return (layers + 1, layers) if layers else None
  if match[2] is not None:
    return int(match[2]) + 1, layers
  # BERT's own norm follows its embeddings, before the blocks.
  embedded = (
    match[3] == "norm"
    and f"{front}words/embedding" in names
    and (f"{front}layer0/attention_norm/scale" in names)
  )
  return (layers + 1 if match[3] in BEHIND and not embedded else 0), layers


def frozen(config, params):
  """Regular expressions of the parameters that are not trained.

  `trainable=False` freezes an encoder's backbone; `train_blocks=K` freezes what precedes its last K
  blocks; adapters freeze what they are beside, see lora.base.

  Args:
    config: of the run.  params: tree of arrays or shapes.
  Returns:
    list of str.
  """
  names = jax.tree.leaves(
    jax.tree_util.tree_map_with_path(
      lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"), params
    )
  )
  result = [f"^{front}" for front in lora.base(config)] if config.model.lora.rank else []
  for side in ("image", "text"):
    section, front = config.model[side], f"{side}_encoder/backbone/"
    if not section.trainable:
      result.append(f"^{front}")
    elif section.get("train_blocks", -1) >= 0:
      first = _layers(names, front) - section.train_blocks
      result += [
        f"^{re.escape(name)}$"
        for name in names
        if name.startswith(front) and (found := depth(name, names)) and found[0] <= first
      ]
  return result


def factors(params, decay):
  """Tree of learning rate factors that fall with the distance from a tower's output.

  A factor is decay ** (L + 1 - position), position as in `depth`: 1 for projections and what
  follows the blocks, decay for the last block, decay ** (L + 1) for embeddings and patches. It is 1
  outside towers.

  Args:
    params: tree of arrays or shapes.  decay: 1 gives all the same rate.
  References:
    Clark et al., ELECTRA, 2020; Bao et al., BEiT, 2022.
  """
  paths = jax.tree_util.tree_map_with_path(
    lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"), params
  )
  names = set(jax.tree.leaves(paths))

  def factor(name):
    found = depth(name, names)
    return 1.0 if found is None else decay ** (found[1] + 1 - found[0])

  return jax.tree.map(factor, paths)
