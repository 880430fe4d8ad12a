"""Weights of a pretrained backbone in one safetensors file, under our own names."""

import json
import pathlib

import flax.traverse_util
import numpy as np
import safetensors
import safetensors.numpy

from xmr.errors import UserError
from xmr.storage import files
from xmr.storage.digests import of_array


def save(path, tree, metadata):
  """Writes a tree of arrays as float32 tensors with names joined by "/".

  Args:
    path: file to write.
    tree: nested dict of arrays; for a backbone {"params": {...}, "batch_stats": {...}}.
    metadata: dict of strings (kind, source, hash of the source ...), kept in the file's header
      with a digest of each tensor.
  """
  flat = flax.traverse_util.flatten_dict(tree, sep="/")
  tensors = {name: np.asarray(value, np.float32, order="C") for name, value in flat.items()}
  header = {key: str(value) for key, value in metadata.items()}
  header["digests"] = json.dumps({name: of_array(x) for name, x in tensors.items()})
  with files.replacing(path) as file:
    # save_file would put a file in place of this one that only its owner may read.
    file.write(safetensors.numpy.save(tensors, header))


def load_backbone(path, variables, *, encoder="image_encoder"):
  """Fills the backbone of one encoder from a file that `save` wrote; all else stays as it is.

  Tensor "params/conv1/kernel" of the file becomes
  variables["params"][encoder]["backbone"]["conv1"]["kernel"], and so on for every collection.

  Args:
    path: safetensors file, float32, names joined by "/".
    variables: {"params": {encoder: {"backbone": ...}}, "batch_stats": ...}, arrays or their shapes
      (jax.eval_shape).
    encoder: the one whose backbone is filled.
  Returns:
    variables with the backbone's arrays replaced (NumPy, float32); the input is not changed.
  Raises:
    UserError: the file is absent, not safetensors or not as it was written; this encoder has no
      backbone; or tensors are missing, extra, misshapen or not float32, all of which are named.
  """
  flat: dict = flax.traverse_util.flatten_dict(variables, sep="/")
  # The second part of a path is the encoder; adapters have it as their third.
  split = {name: name.split("/", 3) for name in flat}
  wanted = {
    f"{parts[0]}/{parts[3]}": name
    for name, parts in split.items()
    if parts[1:3] == [encoder, "backbone"]
  }
  if not wanted:
    raise UserError(
      f"{path}: the {encoder} has no backbone to load weights into; leave its weights empty"
    )
  if not pathlib.Path(path).is_file():
    raise UserError(
      f"{path}: no such file; expected weights that python -m xmr.models.convert wrote"
    )
  try:
    with safetensors.safe_open(path, framework="numpy") as file:
      found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
      _check(path, found, {name: tuple(flat[target].shape) for name, target in wanted.items()})
      read = {name: file.get_tensor(name) for name in wanted}
      _compare(path, read, (file.metadata() or {}).get("digests"))
      flat |= {target: read[name] for name, target in wanted.items()}
  except safetensors.SafetensorError as error:
    raise UserError(f"{path}: not a whole safetensors file ({error})") from None
  return flax.traverse_util.unflatten_dict(flat, sep="/")


def _check(path, found, shapes):
  """Raises one UserError that names all tensors of the file that differ from the shapes."""
  problems = [f"missing {name} {shape}" for name, shape in shapes.items() if name not in found]
  for name, tensor in found.items():
    shape, kind = tuple(tensor.get_shape()), tensor.get_dtype()
    if name not in shapes:
      problems.append(f"extra {name} {shape}")
    elif shape != shapes[name]:
      problems.append(f"{name} has shape {shape}, expected {shapes[name]}")
    elif kind != "F32":
      problems.append(f"{name} has type {kind}, expected F32")
  if problems:
    raise UserError(
      f"{path} does not fit this network in {len(problems)} tensors: {'; '.join(problems)}"
    )


def _compare(path, tensors, digests):
  """Raises UserError where tensors do not match their digests.

  Args:
    path: of the file.  tensors: of the file.
    digests: JSON, or None in a file of an older version, which wrote no digests.
  """
  try:
    saved = {} if digests is None else json.loads(digests)
    wrong = [name for name, x in tensors.items() if saved.get(name, of_array(x)) != of_array(x)]
  except (ValueError, AttributeError):
    wrong = ["its header"]
  if wrong:
    raise UserError(
      f"{path}: {', '.join(wrong[:3])} is not what was written (digests differ); convert it again"
    )
