"""What `python -m xmr.eval` does once its flags are read: files in, results out."""

import dataclasses
import pathlib
import time

import numpy as np

from xmr.errors import UserError
from xmr.eval import baselines, results, table, truth
from xmr.eval.positives import checked_image_of_text
from xmr.eval.readers import load_array, load_captions


@dataclasses.dataclass
class Inputs:
  """One split: embeddings or features, and what is known of it.

  image [N, D], text [T, G]; train: the (image, text, image_of_text) that CCA is fitted on, or None.
  """

  dataset: str
  image: np.ndarray
  text: np.ndarray
  truth: truth.GroundTruth
  train: tuple | None = None


def scored(options):
  """Yields (name, results) of the embeddings, or of each baseline.

  Files are read and checked before the first score is computed.

  Args:
    options: {flag: value} of `xmr.eval.__main__.define`.
  Yields:
    name: of the baseline, or "embeddings"; results: as `results.of_embeddings`.
  Raises:
    UserError: a file that is missing or does not fit the others.
  """
  began = time.perf_counter()
  inputs = _from_config(options) if options["config"] is not None else _from_files(options)
  values = asked(options, inputs.truth)
  table.check(inputs.truth, values, kind=options["kind"], named="--")
  for name in options["baseline"] or ["embeddings"]:
    image, text = _embeddings(name, inputs, options)
    found, _ = results.of_embeddings(
      image,
      text,
      inputs.truth,
      values,
      kind=options["kind"],
      dataset=inputs.dataset,
      split=options["split"],
      seconds=time.perf_counter() - began,
    )
    yield name, found


def asked(options, known):
  """Returns {option: value} of the table's options, of the flags.

  A metric that is neither on nor off (None) is scored where captions or relevance are given, if it
  supports the similarity and the ground truth has what it needs.
  """
  values = {name: options[name] for name in table.options()}
  given = known.texts is not None or values["relevance"] or values["spice"]
  for row in table.EVALUATORS.values():
    for name, needed in row.needs.items():
      if values[name] is None:
        values[name] = bool(
          given
          and options["kind"] in row.kinds
          and all(getattr(known, part) is not None for part in needed)
        )
  return values


def shown(name, found):
  """The table of one result for the terminal, under its name."""
  return f"\n{name}\n{results.shown(found)}"


def _from_files(options):
  image, text = (load_array(options[name], ndim=2) for name in ("image", "text"))
  owner = load_array(options["image_of_text"], ndim=1, integers=True)
  owner = checked_image_of_text(owner, n_texts=len(text), n_images=len(image))
  known = {"image_of_text": owner, "cache_dir": options["cache_dir"]}
  source = "expected --captions=FILE"
  if options["captions"]:
    known |= _captions(options["captions"], options["split"], owner, n_images=len(image))
    source = "expected --captions=FILE with Karpathy's JSON"
  if options["label"]:
    known["label"] = load_array(options["label"], ndim=1, integers=True)
    if len(known["label"]) != len(image):
      raise UserError(
        f"{options['label']} has {len(known['label'])} categories; expected {len(image)}, one per "
        "image"
      )
  inputs = Inputs(
    options["dataset"] or pathlib.Path(options["image"]).stem,
    image,
    text,
    truth.GroundTruth(**known, source=source),
  )
  names = ("train_image", "train_text", "train_image_of_text")
  if "cca" in options["baseline"]:
    missing = [f"--{name}" for name in names if not options[name]]
    if missing:
      raise UserError(f"--baseline=cca needs {', '.join(missing)}, or --config")
    features = [load_array(options[name], ndim=2) for name in names[:2]]
    train_owner = load_array(options[names[2]], ndim=1, integers=True)
    sizes = {"n_texts": len(features[1]), "n_images": len(features[0])}
    inputs.train = (*features, checked_image_of_text(train_owner, **sizes))
  return inputs


def _captions(path, split, owner, *, n_images):
  """Returns what a file knows of the captions; UserError where it is not of these embeddings."""
  known = load_captions(path, split)
  count, texts = len(known.get("image_id", ())) or n_images, len(known["texts"])
  if (texts, count) != (len(owner), n_images):
    found = f"{texts} captions" + (f" of {count} images" if "image_id" in known else "")
    raise UserError(
      f"{path} has {found}; expected {len(owner)} of {n_images}, as in the embeddings"
    )
  wrong = np.flatnonzero(known.get("image_of_text", owner) != owner)
  if len(wrong):
    row = wrong[0]
    raise UserError(
      f"image_of_text[{row}] is {owner[row]}, but caption {row} of {path} describes image "
      f"{known['image_of_text'][row]} ({len(wrong)} of {len(owner)} differ); expected images and "
      "captions in the order of the file"
    )
  return known


def _from_config(options):
  from xmr import data

  config = options["config"]
  splits = data.load(config)

  def features(name):
    if name not in splits:
      raise UserError(f"the data has no split {name!r}; found {', '.join(splits)}")
    found = {side: getattr(splits[name], f"{side}_features") for side in ("image", "text")}
    for side, x in found.items():
      if x is None:
        raise UserError(
          f"config.data.{side} gives no features; expected config.data.{side}_features=FILE.npy"
        )
    return tuple(found.values())

  split = splits.get(options["split"])
  image, text = features(options["split"])
  train = None
  if "cca" in options["baseline"]:
    train = (*features("train"), splits["train"].image_of_text)
  known = truth.of_split(split, cache_dir=options["cache_dir"])
  return Inputs(config.data.name, image, text, known, train)


def _embeddings(name, inputs, options):
  if name == "cca":
    sides = baselines.fit_cca(
      *inputs.train,
      dim=options["cca_dim"],
      regularization=options["cca_regularization"],
      power=options["cca_power"],
    )
    return [
      baselines.project(x, side) for x, side in zip((inputs.image, inputs.text), sides, strict=True)
    ]
  if name == "raw":
    baselines.check_raw(inputs.image, inputs.text)
  return [np.asarray(x, np.float32) for x in (inputs.image, inputs.text)]
