"""What of a pretrained model is trained, and how fast: frozen parts, and rates that fall with
depth.
"""

import re

import jax

# Modules of a tower's backbone that come after its blocks; all others but the blocks come before.
BEHIND = ("norm", "pool")


def _layers(names, front):
  """Number of blocks of the tower whose paths begin so; 0 where it has none."""
  found = (re.match(re.escape(front) + r"layer(\d+)/", name) for name in names)
  return max((int(each[1]) + 1 for each in found if each), default=0)


def depth(name, names):
  """(position, number of blocks) of a parameter: 0 before a tower's blocks, 1 .. L in them, L + 1
  behind them.

  Args:
    name: its path, "image_encoder/backbone/layer3/mlp/up/kernel".  names: paths of all parameters.
  Returns:
    None where it is in no tower.
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


def frozen(config_model, params):
  """Regular expressions of the parameters that are not trained.

  `trainable=False` freezes an encoder's backbone; `train_blocks=K` all of it before its last K
  blocks; adapters all but themselves.

  Args:
    config_model: `config.model`.  params: tree of arrays or shapes.
  Returns:
    list of str.
  """
  if config_model.lora.rank:
    return ["^image_encoder/", "^text_encoder/", "^shared/"]
  names = jax.tree.leaves(
    jax.tree_util.tree_map_with_path(
      lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"), params
    )
  )
  result = []
  for side in ("image", "text"):
    section, front = config_model[side], f"{side}_encoder/backbone/"
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

  decay ** (L + 1 - position), position as of `depth`: 1 for projections and what stands behind the
  blocks, decay for the last block, decay ** (L + 1) for embeddings and patches; 1 for all else.

  Args:
    params: tree of arrays or shapes.  decay: 1 is the same rate for all.
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
