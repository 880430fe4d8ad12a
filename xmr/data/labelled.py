"""Pairs of a text and an image with a category: English Wikipedia, TVGraz, Chinese Wikipedia."""

import dataclasses
import gzip
import json
import os
import warnings

import numpy as np

from xmr.data import features, records
from xmr.data.split import Split
from xmr.errors import UserError

VALIDATION = 0.1  # of each category of the training list, where the set names no validation part
TEXTS = "texts.jsonl.gz"
FEATURES = "raw_features.mat"


@dataclasses.dataclass(frozen=True)
class Layout:
  """Where a set lists its splits: a list per split, or one list of all pairs and a split file."""

  lists: dict  # {split: file}, or {"": file} beside split.list
  counts: dict  # {split: pairs} that must be there; {} where the set is not public
  source: str
  chinese: bool = False


LAYOUTS = {
  "wikipedia": Layout(
    {"train": "trainset_txt_img_cat.list", "test": "testset_txt_img_cat.list"},
    {"train": 2173, "test": 693},
    "Rasiwasia et al., ACM MM 2010: 2,866 pairs, 10 categories, 2,173 train / 693 test",
  ),
  "tvgraz": Layout(
    {"": "txt_img_cat.list"},
    {},
    "Khan et al., TVGraz; the group counts about 2,594 pairs, 10 categories",
  ),
  "wikipedia_zh": Layout(
    {"": "txt_img_cat.list"}, {}, "the group counts about 3,103 pairs, 9 categories", chinese=True
  ),
}


@dataclasses.dataclass(frozen=True)
class Pairs:
  """The checked content of a folder: P pairs in the order of the lists."""

  categories: list[str]
  split: np.ndarray  # [P] str: train, val or test
  text_names: list[str]
  image_names: list[str]
  label: np.ndarray  # [P] int32, from 0
  texts: list[str]


def tree(name):
  """Returns the files that a set's folder needs, one per line."""
  layout = LAYOUTS[name]
  files = {file: "text id <tab> image id <tab> category from 1" for file in layout.lists.values()}
  if "" in layout.lists:
    files["split.list"] = "text id <tab> train, val or test; every pair once"
  files |= {
    "categories.list": "a name a line, in the order of their numbers",
    TEXTS: '{"text_id": ..., "text": ...} a line and, if given, "category": name',
    FEATURES: "optional: I_tr, I_te [pairs, F] of images, T_tr, T_te [pairs, G] of texts, rows "
    "as the lists",
    "config.data.image_features": ".npy [all pairs, F], rows as the lists, train before test "
    "(VGG19 fc7: F = 4096)",
  }
  return f" {name} ({layout.source}) with" + ",".join(
    f"\n  {file} ({content})" for file, content in files.items()
  )


def load(config):
  """Returns the splits of a labelled set.

  There is no official validation part: where split.list names none, a tenth of each category of the
  training list is set aside, the same for every run; train and val together are the official
  training split, and test is untouched.

  Args:
    config: reads data.name, dir, cache_dir, image_features ("" or raw_features.mat: those of the
      .mat; else a .npy) and image_features_scale.
  Returns:
    {"train", "val", "test": Split} with `label`; one text per image.
  Raises:
    UserError: a file that is missing (the expected tree is printed) or damaged, an unknown
      category, a pair without a text, an empty text, a pair in two splits, features of another
      length.
  """
  data = config.data
  folder, layout = os.path.expanduser(data.dir), LAYOUTS[data.name]
  pairs = read(folder, data.name)
  matrices = read_features(folder, data, pairs)
  counts = {
    name: int(np.sum(pairs.split == name))
    for name in ("train", "val", "test")
    if np.any(pairs.split == name)
  }
  files = sorted(entry.path for entry in os.scandir(folder) if entry.is_file())
  stamps = [(os.path.basename(f), os.stat(f).st_size, os.stat(f).st_mtime_ns) for f in files]
  from xmr.data import labelled_builder

  sources = records.prepare(
    data.cache_dir,
    data.name,
    lambda target: labelled_builder.builder(data.name, data_dir=target, pairs=pairs, counts=counts),
    key=json.dumps([1, stamps]),
    counts=counts,
  )
  rows = {name: np.flatnonzero(pairs.split == name).astype(np.int32) for name in counts}
  segment = segmenter() if layout.chinese else str.split
  if "val" not in rows:
    held_out = validation_rows(pairs.label[rows["train"]])
    rows = {"train": rows["train"][~held_out], "val": rows["train"][held_out], "test": rows["test"]}
  examples = {int(e["row"]): e for source in sources.values() for e in source}
  return {
    name: _split(name, rows[name], examples, matrices, segment, pairs.categories)
    for name in ("train", "val", "test")
  }


def _split(name, rows, examples, matrices, segment, categories):
  chosen = [examples[int(row)] for row in rows]
  texts = [_text(example["text"]) for example in chosen]
  return Split(
    name=name,
    image_id=rows,
    text_id=rows,
    image_of_text=np.arange(len(rows), dtype=np.int32),
    image_names=[_text(example["image_name"]) for example in chosen],
    texts=texts,
    tokens=[segment(text.lower()) for text in texts],
    label=np.array([example["category"] for example in chosen], np.int32),
    categories=categories,
    **{key: matrix[rows] for key, matrix in matrices.items() if matrix is not None},
  )


def _text(value):
  return value.decode() if isinstance(value, bytes) else str(value)


def validation_rows(label, *, share=VALIDATION, seed=0):
  """Returns [N] bool: a share of each category (rounded), drawn by a seed; at least one is left in
  each part.

  Raises:
    UserError: a category of one pair, which cannot be in both parts.
  """
  rng = np.random.Generator(np.random.Philox(key=seed))
  chosen = np.zeros(len(label), bool)
  for category in np.unique(label):
    rows = np.flatnonzero(label == category)
    if len(rows) < 2:
      raise UserError(
        f"category {category + 1} has {len(rows)} training pair; expected at least 2, one for "
        "validation"
      )
    chosen[rng.permutation(rows)[: max(1, round(share * len(rows)))]] = True
  return chosen


def read(folder, name):
  """Returns the Pairs of a folder, every row checked; UserError says what is wrong where."""
  layout = LAYOUTS[name]
  needed = [
    *layout.lists.values(),
    "categories.list",
    TEXTS,
    *(["split.list"] if "" in layout.lists else []),
  ]
  missing = [file for file in needed if not os.path.isfile(os.path.join(folder, file))]
  if missing:
    found = f"{folder or 'config.data.dir (empty)'} has no {', '.join(missing)}"
    raise UserError(f"{found}; expected the folder of", tree=tree(name))
  categories = [line for _, (line,) in _rows(folder, "categories.list", 1)]
  split_of = _split_of(folder, layout)
  texts, given = _read_texts(folder)
  columns = {"split": [], "text": [], "image": [], "label": []}
  seen = {}
  for split, file in layout.lists.items():
    for number, (text, image, category) in _rows(folder, file, 3):
      where = f"{os.path.join(folder, file)}, line {number}"
      if not category.isdecimal() or not 1 <= int(category) <= len(categories):
        raise UserError(
          f"{where}: category {category!r}; expected 1 to {len(categories)}, the lines of "
          "categories.list"
        )
      if text not in texts:
        raise UserError(f"{where}: text {text!r} is not in {TEXTS}")
      if not texts[text].strip():
        raise UserError(f"{where}: text {text!r} is empty in {TEXTS}")
      if given.get(text, categories[int(category) - 1]) != categories[int(category) - 1]:
        raise UserError(
          f"{where}: category {categories[int(category) - 1]}; {TEXTS} says {given[text]} of "
          f"text {text!r}"
        )
      if split == "" and text not in split_of:
        raise UserError(
          f"{where}: text {text!r} is in no row of split.list; expected train, val or test for "
          "every pair"
        )
      part = split or split_of[text]
      for kind, key in (("text", text), ("image", image)):
        other = seen.setdefault((kind, key), part)
        if other != part:
          raise UserError(
            f"{where}: {kind} {key!r} is in {other} and in {part}; splits must not overlap"
          )
      for column, value in zip(
        columns.values(), (part, text, image, int(category) - 1), strict=True
      ):
        column.append(value)
  if len(set(columns["text"])) != len(columns["text"]):
    raise UserError(
      f"{folder}: {len(columns['text'])} pairs of {len(set(columns['text']))} texts; expected "
      "every text id once"
    )
  split = np.array(columns["split"])
  found = {part: int(np.sum(split == part)) for part in ("train", "test")}
  if any(found[part] != count for part, count in layout.counts.items()) or not all(found.values()):
    counted = f"{found['train']:,} training and {found['test']:,} test pairs"
    raise UserError(f"{folder} has {counted}; expected those of", tree=tree(name))
  return Pairs(
    categories,
    split,
    columns["text"],
    columns["image"],
    np.array(columns["label"], np.int32),
    [texts[text] for text in columns["text"]],
  )


def _check_plain(path):
  """A pipe would make the reader wait for ever."""
  if os.path.exists(path) and not os.path.isfile(path):
    raise UserError(f"{path} is no plain file; expected lines of text")


def _rows(folder, file, columns):
  """Yields (line number, fields) of a list, without empty lines."""
  path = os.path.join(folder, file)
  try:
    _check_plain(path)
    with open(path, encoding="utf-8") as lines:
      for number, line in enumerate(lines, 1):
        if not line.strip():
          continue
        fields = line.rstrip("\r\n").split("\t")
        if len(fields) != columns or not all(fields):
          raise UserError(
            f"{path}, line {number}: {len(fields)} columns; expected {columns} separated by tabs"
          )
        yield number, fields
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"{path} cannot be read: {error}") from None


def _split_of(folder, layout):
  if "" not in layout.lists:
    return {}
  parts = {}
  for number, (text, part) in _rows(folder, "split.list", 2):
    where = f"{os.path.join(folder, 'split.list')}, line {number}"
    if part not in ("train", "val", "test"):
      raise UserError(f"{where}: split {part!r}; expected train, val or test")
    if parts.setdefault(text, part) != part:
      raise UserError(
        f"{where}: text {text!r} is in {parts[text]} and in {part}; splits must not overlap"
      )
  return parts


def _read_texts(folder):
  path, texts, categories, number = os.path.join(folder, TEXTS), {}, {}, 0
  try:
    _check_plain(path)
    with gzip.open(path, "rt", encoding="utf-8") as lines:
      for line in lines:
        number += 1
        row = json.loads(line)
        texts[str(row["text_id"])] = str(row["text"])
        if "category" in row:
          categories[str(row["text_id"])] = str(row["category"])
  except (OSError, EOFError, UnicodeDecodeError) as error:
    raise UserError(f"{path} cannot be read: {error}") from None
  except (json.JSONDecodeError, KeyError, TypeError, RecursionError) as error:
    raise UserError(
      f"{path}, line {number}: {error}; expected JSON with text_id and text"
    ) from None
  return texts, categories


def read_features(folder, data, pairs):
  """Returns {"image_features": [P, F] or None, "text_features": [P, G] or None}, float32, rows as
  the lists.
  """
  found: dict[str, np.ndarray | None] = {"image_features": None, "text_features": None}
  path = os.path.join(folder, FEATURES)
  if os.path.exists(path):
    found = _read_mat(path, pairs)
  if data.image_features not in ("", FEATURES):
    found["image_features"] = features.scale(
      features.open_features(
        os.path.join(folder, os.path.expanduser(data.image_features)),
        field="data.image_features",
        rows=len(pairs.texts),
        row_is="pair",
      ),
      data.image_features_scale,
    )
  elif found["image_features"] is None:
    raise UserError(
      f"{folder} has no {FEATURES} and config.data.image_features names no .npy; expected",
      tree=tree(data.name),
    )
  return found


def _read_mat(path, pairs):
  from scipy import io

  try:
    content = io.loadmat(path)
  except Exception as error:  # Whatever a damaged file makes SciPy raise.
    raise UserError(f"{path} is no MATLAB file of matrices: {error}") from None
  matrices = {}
  test = pairs.split == "test"
  for key, letter in (("image_features", "I"), ("text_features", "T")):
    parts = []
    for split, suffix, rows in (
      ("training", "tr", int(np.sum(~test))),
      ("test", "te", int(np.sum(test))),
    ):
      field = f"{letter}_{suffix}"
      matrix = content.get(field)
      if (
        not isinstance(matrix, np.ndarray)
        or matrix.ndim != 2
        or matrix.dtype.kind != "f"
        or len(matrix) != rows
      ):
        shape = (
          "missing"
          if matrix is None
          else f"{getattr(matrix, 'dtype', type(matrix))} {np.shape(matrix)}"
        )
        raise UserError(
          f"{path}: {field} is {shape}; expected float ({rows}, features), one row per {split} pair"
        )
      if not np.isfinite(matrix).all():
        raise UserError(f"{path}: {field} holds NaN or infinity; expected finite numbers")
      parts.append(matrix.astype(np.float32))
    if parts[0].shape[1] != parts[1].shape[1]:
      widths = [part.shape[1] for part in parts]
      raise UserError(
        f"{path}: {letter}_tr has {widths[0]} columns and {letter}_te {widths[1]}; expected the "
        "same"
      )
    matrices[key] = np.empty((len(test), parts[0].shape[1]), np.float32)
    matrices[key][~test], matrices[key][test] = parts
  return matrices


def segmenter():
  """Returns a function from Chinese text to its words, by jieba; UserError where it is not
  installed.
  """
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      import jieba
  except ImportError:
    raise UserError("Chinese text needs jieba for its words: pip install -e '.[chinese]'") from None
  jieba.setLogLevel("ERROR")
  return lambda text: [word for word in jieba.lcut(text) if word.strip()]
