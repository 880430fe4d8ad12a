"""Folders of downloaded weights: their JSON files, their tensors in one file or in shards, and the
signs of an incomplete download.
"""

import json
import pathlib

from xmr.errors import UserError
from xmr.interop.torch_files import read_tensors

POINTER = b"version https://git-lfs"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
OPEN_CLIP_WEIGHTS = (
  "open_clip_model.safetensors",
  "open_clip_pytorch_model.safetensors",
  "open_clip_pytorch_model.bin",
)


def refuse_pointer(path):
  """Raises UserError where a file is the pointer that git-lfs leaves instead of the real file."""
  with open(path, "rb") as file:
    if file.read(len(POINTER)) == POINTER:
      raise UserError(
        f"{path}: is a git-lfs pointer, not the file itself; run git lfs pull in its folder"
      )


def read_json(path):
  """The JSON object in a file.

  Raises:
    UserError: no such file, a git-lfs pointer, or a file without a JSON object.
  """
  path = pathlib.Path(path)
  try:
    # A pipe would make the reader wait for ever.
    if path.exists() and not path.is_file():
      raise UserError(f"{path}: no plain file; expected JSON")
    found = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError:
    raise UserError(f"{path}: no such file; {_instead(path)}") from None
  except UserError:
    raise
  except (OSError, ValueError, RecursionError) as error:
    if isinstance(error, ValueError):
      refuse_pointer(path)
    raise UserError(f"{path}: not a JSON file ({error})") from None
  if not isinstance(found, dict):
    raise UserError(f"{path}: holds a {type(found).__name__}; expected a JSON object")
  return found


def _instead(path):
  """What to do where a file of a folder is missing."""
  if path.name != "tokenizer.json" or not path.with_name("merges.txt").exists():
    return "expected config.json, model.safetensors, tokenizer.json"
  folder = str(path.parent)
  return (
    "expected it beside vocab.json and merges.txt: transformers writes it by "
    f"AutoTokenizer.from_pretrained({folder!r}).save_pretrained({folder!r})"
  )


def read_weights(folder, names=WEIGHTS):
  """All tensors of a folder.

  Args:
    folder: path.
    names: files to look for, the likelier first; NAME.index.json lists the shards of NAME.
  Returns:
    ({name: array}, path): floats as float32, and the file or index that they are from.
  Raises:
    UserError: none of the files, a missing or incomplete shard, or a git-lfs pointer.
  """
  folder = pathlib.Path(folder)
  for name in names:
    path, index = folder / name, folder / f"{name}.index.json"
    if path.is_file():
      refuse_pointer(path)
      return read_tensors(path), path
    if index.is_file():
      return _shards(index), index
  found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:12]) or "nothing"
  raise UserError(f"{folder}: has {found}; expected the weights, {' or '.join(names)}")


def _shards(index):
  places = read_json(index).get("weight_map")
  if not isinstance(places, dict) or not places:
    raise UserError(f"{index}: has no weight_map; expected the shard of each tensor")
  files = sorted(set(places.values()))
  missing = [file for file in files if not (index.parent / file).is_file()]
  if missing:
    raise UserError(
      f"{index.parent}: lacks {len(missing)} of {len(files)} shards ({', '.join(missing)}); "
      "download them again"
    )
  tensors = {}
  for file in files:
    refuse_pointer(index.parent / file)
    tensors |= read_tensors(index.parent / file)
  lost = sorted(set(places) - set(tensors))
  if lost:
    raise UserError(f"{index}: lists {len(lost)} tensors that no shard holds: {', '.join(lost)}")
  return tensors
