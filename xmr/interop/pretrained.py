"""A folder of pretrained towers, in either format, as the parts of a run."""

import pathlib

from xmr.errors import UserError
from xmr.interop import hugging_face, open_clip
from xmr.interop.folders import WEIGHTS, read_json
from xmr.interop.torch_files import sha256

IMAGE = {"clip": "clip_vit", "siglip": "siglip_vit", "dinov2": "dinov2"}
TEXT = {"clip": "clip_text", "siglip": "siglip_text"}
# Fields that an encoder's name fixes, or that the config holds outside the encoder's section.
ELSEWHERE = ("kind", "dim", "vocabulary_size")


def load(folder):
  """The Towers of a Hugging Face or open_clip folder.

  A folder that holds both formats is read as Hugging Face's.

  Raises:
    UserError: no such folder, neither format, or as hugging_face.load and open_clip.load.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise UserError(
      f"{folder}: no such folder; expected one with config.json or {open_clip.CONFIG}"
    )
  theirs = folder / open_clip.CONFIG
  whole = any((folder / f"{name}{end}").exists() for name in WEIGHTS for end in ("", ".index.json"))
  if theirs.exists() and not ((folder / "config.json").exists() and whole):
    return open_clip.load(folder)
  return hugging_face.load(folder)


def settings(towers):
  """The fields of a config that towers need: {"model.dim": 512, ...}.

  Raises:
    UserError: an image tower alone.
  """
  if towers.text is None:
    raise UserError(
      f"{towers.source.parent}: holds {towers.kind}, an image tower without a text tower; make a "
      "file of it with python -m xmr.models.convert and give that as config.model.image.weights"
    )
  return {
    "model.dim": towers.image["dim"],
    "model.normalize": "l2",
    **side_settings(towers, "image"),
    **side_settings(towers, "text"),
  }


def side_settings(towers, side):
  """The fields of a config that one tower needs, including its projection."""
  fields, name = {"image": (towers.image, IMAGE), "text": (towers.text, TEXT)}[side]
  data = {f"data.{key}": value for key, value in towers.data.items()} if side == "image" else {}
  return {
    f"data.{side}": {"image": "pixels", "text": "words"}[side],
    **data,
    f"model.{side}.name": name[towers.kind],
    **{f"model.{side}.{key}": value for key, value in fields.items() if key not in ELSEWHERE},
  }


def source(towers):
  """The source that a run folder records: {"file", "sha256", "kind", "files"}.

  The hash is that of the weights; weights in shards have the hash of their index and one per shard.
  """
  path = towers.source
  files = {path.name: sha256(path)}
  if path.name.endswith(".index.json"):
    shards = sorted(set(read_json(path)["weight_map"].values()))
    files |= {name: sha256(path.parent / name) for name in shards}
  return {"file": path.name, "sha256": files[path.name], "kind": towers.kind, "files": files}
