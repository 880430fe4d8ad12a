"""What `python -m xmr.eval` does once its flags are read: files in, results out."""

import dataclasses
import gzip
import json
import pathlib

import numpy as np

from xmr.errors import UserError
from xmr.eval import baselines, consistency, eccv_caption, protocol, sts
from xmr.eval.graded import check_k, checked_relevance, graded_by
from xmr.eval.relevance import load_spice, rouge_l


@dataclasses.dataclass
class Inputs:
  """One split: embeddings or features, and what is known of its captions.

  image [N, D], text [T, G], image_of_text [T]; texts: T captions, image_id [N] and text_id [T] ids,
  or None; train: the (image, text, image_of_text) that CCA is fitted on, or None.
  """

  dataset: str
  image: np.ndarray
  text: np.ndarray
  image_of_text: np.ndarray
  texts: list | None = None
  image_id: np.ndarray | None = None
  text_id: np.ndarray | None = None
  train: tuple | None = None


def scored(options):
  """Yields (name, results) of the embeddings, or of each baseline.

  Args:
    options: {flag: value} of `xmr.eval.__main__.define`.
  Yields:
    name: of the baseline, or "embeddings"; results: as `protocol.results`.
  Raises:
    UserError: a file that is missing or does not fit the others.
  """
  inputs = _from_config(options) if options["config"] is not None else _from_files(options)
  extras = _Extras(inputs, options)
  for name in options["baseline"] or ["embeddings"]:
    image, text = _embeddings(name, inputs, options)
    yield (
      name,
      protocol.results(
        image,
        text,
        inputs.image_of_text,
        dataset=inputs.dataset,
        split=options["split"],
        step=None,
        seed=None,
        folds=options["folds"],
        kind=options["kind"],
        extra=extras.figures(image, text),
      ),
    )


def shown(name, found):
  """The table of one result for the terminal, under its name."""
  return f"\n{name}\n{protocol.table(found)}"


class _Extras:
  """Everything beyond recall. Files are read and checked before the first score is computed."""

  def __init__(self, inputs, options):
    self.inputs, self.options = inputs, options
    n_texts, n_images = len(inputs.text), len(inputs.image)
    self.relevances = {}
    if options["relevance"] or options["spice"] or inputs.texts is not None:
      check_k(
        options["k"], n_images=n_images, n_texts=n_texts, include_self=options["include_self"]
      )
    if options["relevance"]:
      self.relevances["relevance"] = checked_relevance(
        load_array(options["relevance"], ndim=2),
        n_texts=n_texts,
        n_images=n_images,
        name=options["relevance"],
      )
    if inputs.texts is not None:
      self.relevances["rouge_l"] = rouge_l(
        inputs.texts, inputs.image_of_text, n_images=n_images, cache_dir=options["cache_dir"]
      )
    if options["spice"]:
      self.relevances["spice"] = load_spice(options["spice"], n_texts=n_texts, n_images=n_images)
    self.positives, self.sts = {}, None
    for flag in ("positives", "sts"):
      if options[flag] and inputs.text_id is None:
        raise UserError(
          f"--{flag} needs the ids of the captions; expected --captions=FILE with Karpathy's JSON"
        )
    if options["positives"]:
      self.positives = {
        name: eccv_caption.load_positives(
          options["positives"], name, image_id=inputs.image_id, text_id=inputs.text_id
        )
        for name in ("eccv", "cxc")
      }
    if options["sts"]:
      self.sts = sts.load_sts(options["sts"], text_id=inputs.text_id)

  def figures(self, image, text):
    """Returns {name: float} of one pair of embeddings."""
    options, owner, found = self.options, self.inputs.image_of_text, {}
    if self.relevances:
      found |= graded_by(
        image,
        text,
        owner,
        self.relevances,
        k=options["k"],
        alpha=options["alpha"],
        form=options["form"],
        kind=options["kind"],
        include_self=options["include_self"],
        novelty=options["novelty"],
      )
      if options["kind"] == "cosine":
        found |= consistency.order_consistency(image, text, owner)
    for name, positives in self.positives.items():
      of_set = eccv_caption.retrieval(image, text, positives, kind=options["kind"])
      # mAP@R and R-Precision belong to ECCV Caption, whose positives are complete.
      found |= {
        f"{name}/{key}": of_set[key]
        for key in of_set
        if name == "eccv" or key.split("/")[1][1:].isdigit()
      }
    if self.sts:
      found |= sts.sts_correlation(text, *self.sts)
      found["sts/spearman_plain"] = sts.sts_correlation(text, *self.sts, form="plain")[
        "sts/spearman"
      ]
    return found


def load_array(path, *, ndim, integers=False):
  """Reads a .npy file without unpickling; UserError where it is absent or of another kind."""
  path = pathlib.Path(path)
  if not path.is_file():
    raise UserError(f"no file {path}")
  try:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
  except (ValueError, EOFError, OSError) as error:
    raise UserError(f"{path} is not a .npy file of numbers: {error}") from None
  kinds, expected = ("iu", "integers") if integers else ("fiu", "numbers")
  if not isinstance(array, np.ndarray) or array.ndim != ndim or array.dtype.kind not in kinds:
    kind = (
      f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else "an archive"
    )
    raise UserError(
      f"{path} holds {kind}; expected {expected} with {ndim} dimension{'s' if ndim > 1 else ''}"
    )
  return array


def load_captions(path, split):
  """Reads captions.

  Args:
    path: .json or .json.gz: Karpathy's format, or a list of captions. split: of Karpathy's format.

  Returns:
    texts: list of T captions; image_id: [N] and text_id: [T] int (cocoid or imgid, sentid); None
      for a plain list.

  Raises:
    UserError: no such file, another format, or no image of the split.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise UserError(f"no captions file {path}")
  try:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
      content = json.load(file)
    if isinstance(content, list):
      if not all(isinstance(text, str) for text in content):
        raise UserError(
          f"{path} is a list, but not of strings; expected captions in the order of --text"
        )
      return content, None, None
    images = [image for image in content["images"] if image["split"] == split]
    if not images:
      raise UserError(f"{path} has no images of split {split!r}")
    sentences = [sentence for image in images for sentence in image["sentences"]]
    image_id = np.array(
      [image["cocoid"] if "cocoid" in image else image["imgid"] for image in images]
    )
    return (
      [sentence["raw"] for sentence in sentences],
      image_id,
      np.array([s["sentid"] for s in sentences]),
    )
  except (json.JSONDecodeError, UnicodeDecodeError, gzip.BadGzipFile) as error:
    raise UserError(f"{path} is not JSON: {error}") from None
  except (KeyError, TypeError, AttributeError) as error:
    raise UserError(
      f"{path} lacks {error}; expected Karpathy's format or a list of captions"
    ) from None


def _from_files(options):
  image, text = (load_array(options[name], ndim=2) for name in ("image", "text"))
  owner = load_array(options["image_of_text"], ndim=1, integers=True)
  owner = protocol.checked_image_of_text(owner, n_texts=len(text), n_images=len(image))
  inputs = Inputs(options["dataset"] or pathlib.Path(options["image"]).stem, image, text, owner)
  if options["captions"]:
    texts, image_id, text_id = load_captions(options["captions"], options["split"])
    if len(texts) != len(text) or (image_id is not None and len(image_id) != len(image)):
      found = f"{len(texts)} captions" + ("" if image_id is None else f" of {len(image_id)} images")
      raise UserError(
        f"{options['captions']} has {found}; expected {len(text)} of {len(image)}, as in the "
        "embeddings"
      )
    inputs.texts, inputs.image_id, inputs.text_id = texts, image_id, text_id
  names = ("train_image", "train_text", "train_image_of_text")
  if "cca" in options["baseline"]:
    missing = [f"--{name}" for name in names if not options[name]]
    if missing:
      raise UserError(f"--baseline=cca needs {', '.join(missing)}, or --config")
    features = [load_array(options[name], ndim=2) for name in names[:2]]
    train_owner = load_array(options[names[2]], ndim=1, integers=True)
    sizes = {"n_texts": len(features[1]), "n_images": len(features[0])}
    inputs.train = (*features, protocol.checked_image_of_text(train_owner, **sizes))
  return inputs


def _from_config(options):
  from xmr import data

  config = options["config"]
  splits = data.load(config)
  needed = [options["split"], *(["train"] if "cca" in options["baseline"] else [])]
  for name in needed:
    if name not in splits:
      raise UserError(f"the data has no split {name!r}; found {', '.join(splits)}")
    for side in ("image", "text"):
      if getattr(splits[name], f"{side}_features") is None:
        raise UserError(
          f"config.data.{side} gives no features; expected config.data.{side}_features=FILE.npy"
        )
  split = splits[options["split"]]
  train = splits.get("train")
  return Inputs(
    config.data.name,
    split.image_features,
    split.text_features,
    split.image_of_text,
    split.texts,
    split.image_id,
    split.text_id,
    (train.image_features, train.text_features, train.image_of_text)
    if "cca" in options["baseline"]
    else None,
  )


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
