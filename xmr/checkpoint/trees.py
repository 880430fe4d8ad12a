"""Trees of arrays as flat dicts, whose names do not depend on the classes of optax or flax."""

from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import PyTree


def flatten(tree: PyTree) -> dict[str, Any]:
  """Returns {"a.b.c": leaf}: a form that does not depend on the classes of optax or flax."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def targets(tree: PyTree[jax.Array | jax.ShapeDtypeStruct]) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns flatten() of a tree with each array's shape, type and sharding in its place."""
  return {
    name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
    for name, x in flatten(tree).items()
  }


def unflatten(flat: Mapping[str, Any], template: PyTree) -> Any:
  """Returns the tree of `template` with the leaves of flatten()."""
  return jax.tree.unflatten(
    jax.tree.structure(template), [flat[name] for name in flatten(template)]
  )


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Returns {"a": {"b": x}} of {"a.b": x}."""
  tree = {}
  for name, value in flat.items():
    *parents, leaf = name.split(".")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[leaf] = value
  return tree
