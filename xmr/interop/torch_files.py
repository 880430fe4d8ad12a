"""Tensors of PyTorch's files, and the name that each of our variables has there. No code in a file
is ever executed.
"""

import hashlib
import pathlib
import re
import warnings

import jax
import numpy as np

from xmr.errors import UserError


def sha256(path):
  """Hex digest of a file."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _is_safetensors(path):
  with open(path, "rb") as file:
    head = file.read(9)
  # Eight bytes of length, then a JSON object; a real header is shorter than 100 MB.
  return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000


def _read_safetensors(path):
  import safetensors

  try:
    with safetensors.safe_open(path, framework="numpy") as file:
      return {name: _float(file, name) for name in file.keys()}
  except safetensors.SafetensorError as error:
    raise UserError(f"{path}: not a whole safetensors file ({error}); download it again") from None


def _float(file, name):
  found = file.get_tensor(name)
  # bfloat16 is no NumPy type of its own, and its kind is "V".
  return found.astype(np.float32) if found.dtype.kind in "fV" else found


def read_torch(path, *, containers=()):
  """Reads what torch.save wrote, with PyTorch's weights_only reader, which builds only plain
  containers.

  Args:
    path: a zip (PyTorch 1.6 and later) or the older format.
    containers: further classes that may be built; each must only hold attributes and run nothing.
  Returns:
    the saved object, its tensors on the CPU.
  Raises:
    UserError: no such file, PyTorch is missing, the file is cut short, or it holds anything but
      plain containers.
  """
  if not pathlib.Path(path).is_file():
    raise UserError(f"{path}: no such file")
  try:
    import torch
  except ImportError:
    raise UserError(
      f"{path}: reading a PyTorch file needs torch: pip install -e '.[convert]'"
    ) from None
  try:
    with torch.serialization.safe_globals(list(containers)), warnings.catch_warnings():
      warnings.simplefilter("ignore")
      return torch.load(path, map_location="cpu", weights_only=True)
  except Exception as error:  # A damaged file can make the reader raise anything.
    raise UserError(f"{path}: {_reason(str(error))}") from None


def _reason(message):
  # PyTorch's own messages tell the user how to run the file's code.
  if "TorchScript" in message:
    return "is a TorchScript program, which is code; expected the tensors of its state_dict()"
  refused = re.search(r"GLOBAL ([\w.]+)", message)
  if refused:
    return (
      f"holds {refused[1]}, which is code; expected tensors in plain containers. Nothing was "
      f"executed"
    )
  return (
    "neither a whole safetensors file nor a whole PyTorch file: cut short, damaged, or "
    "something else"
  )


def arrays(state, *, source):
  """A state dict as NumPy: {name: array}, floats as float32.

  Raises:
    UserError: `state` is not a dict from names to tensors; the message says what it is, and names
      the first value that is not a tensor.
  """
  if not isinstance(state, dict):
    raise UserError(f"{source}: holds a {type(state).__name__}; expected a dict of tensors")
  result = {}
  for name, tensor in state.items():
    if not isinstance(name, str) or not hasattr(tensor, "detach"):
      raise UserError(f"{source}: entry {name!r} is a {type(tensor).__name__}; expected a tensor")
    tensor = tensor.detach()
    kind = _without_values(tensor)
    if kind:
      raise UserError(f"{source}: entry {name!r} is {kind}; expected a dense tensor of numbers")
    result[name] = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
  return result


def _without_values(tensor):
  """Describes a tensor that has no plain values of its own; None for any other tensor."""
  if tensor.device.type != "cpu":
    return f"a tensor without values (device {tensor.device.type})"
  if str(tensor.layout) != "torch.strided":
    return f"a tensor of layout {str(tensor.layout).removeprefix('torch.')}"
  if tensor.is_quantized or tensor.is_complex():
    return f"a tensor of type {str(tensor.dtype).removeprefix('torch.')}"
  if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
    # With strides of 0 a few bytes in a file can claim to be a tensor of any size.
    return f"a tensor of shape {tuple(tensor.shape)} with fewer values than that"
  return None


def read_tensors(path):
  """{name: NumPy array} of a .safetensors or PyTorch file of weights, told apart by content.

  Of a training checkpoint it reads `state_dict`, `model` or `model_state_dict`; DataParallel's
  prefix `module.` is removed.

  Args:
    path: file.
  Returns:
    dict from name to array; floats are float32.
  Raises:
    UserError: no such file, cut short, or not plain tensors.
  """
  if not pathlib.Path(path).is_file():
    raise UserError(f"{path}: no such file")
  if _is_safetensors(path):
    found = _read_safetensors(path)
  else:
    state = read_torch(path)
    for key in ("state_dict", "model", "model_state_dict"):
      if isinstance(state, dict) and isinstance(state.get(key), dict):
        state = state[key]
        break
    found = arrays(state, source=path)
  if not found:
    raise UserError(f"{path}: holds no tensors")
  if all(name.startswith("module.") for name in found):
    found = {name.removeprefix("module."): value for name, value in found.items()}
  return found


def to_ours(value, leaf, shape):
  """A PyTorch tensor in our layout: kernels [out, in, height, width] to [height, width, in, out],
  [out, in] to [in, out].

  Args:
    value: array.  leaf: name of our variable.  shape: of our variable.
  Returns:
    array of `shape`, or None where the tensor has another shape.
  """
  if leaf == "kernel" and value.ndim == 4 and len(shape) == 2:
    # timm's VGG stores a fully connected layer as a convolution over the whole grid.
    value = value.reshape(value.shape[0], -1)
  if leaf == "kernel":
    value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
  elif _no_leading_ones(value.shape) == _no_leading_ones(shape):
    # A token's vector, stored [1, 1, width] or [width].
    value = value.reshape(shape)
  return np.ascontiguousarray(value) if value.shape == tuple(shape) else None


def _no_leading_ones(shape):
  first = next((i for i, size in enumerate(shape) if size != 1), len(shape))
  return tuple(shape[first:])


def _theirs(leaf, shape):
  """Shape that our variable has in PyTorch."""
  if leaf != "kernel":
    return tuple(shape)
  return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else tuple(reversed(shape))


def paths(tree, prefix=()):
  """(path, leaf) of every leaf of nested dicts."""
  for key, value in tree.items():
    if isinstance(value, dict):
      yield from paths(value, (*prefix, key))
    else:
      yield (*prefix, key), value


def template(module, *example, **kwargs):
  """Shapes of a module's variables, {"params": ..., "batch_stats": ...}; nothing is computed."""
  return jax.eval_shape(lambda *inputs: module.init(jax.random.key(0), *inputs, **kwargs), *example)


def compare(shapes, tensors, *, name, ignored=()):
  """Looks up each of our variables among PyTorch's tensors.

  Args:
    shapes: {"params": nested, "batch_stats": nested} of anything with .shape.
    tensors: {PyTorch name: array}.
    name: function from a path within the collection to the PyTorch name.
    ignored: prefixes of PyTorch names that we do not need; BatchNorm's step counter is always
      ignored.
  Returns:
    variables: nested like `shapes`, NumPy.  problems: list of str, one for each missing, extra or
      misshapen tensor.
  """
  variables, problems, used = {}, [], set()
  for (collection, *path), want in paths(shapes):
    theirs = name(tuple(path))
    used.add(theirs)
    if theirs not in tensors:
      problems.append(f"missing {theirs} {_theirs(path[-1], want.shape)}")
      continue
    value = to_ours(tensors[theirs], path[-1], want.shape)
    if value is None:
      problems.append(
        f"{theirs} has shape {tensors[theirs].shape}, expected {_theirs(path[-1], want.shape)}"
      )
      continue
    node = variables.setdefault(collection, {})
    for key in path[:-1]:
      node = node.setdefault(key, {})
    node[path[-1]] = value.astype(np.float32)
  for theirs in tensors:
    if (
      theirs not in used
      and not theirs.endswith("num_batches_tracked")
      and not theirs.startswith(tuple(ignored))
    ):
      problems.append(f"extra {theirs} {tensors[theirs].shape}")
  return variables, problems


def refuse(problems, *, source, kind):
  """Raises UserError with all `problems` of compare()."""
  raise UserError(
    f"{source}: does not fit {kind} in {len(problems)} tensors: " + "; ".join(problems)
  )
