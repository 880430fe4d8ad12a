"""The formats of captioned images: which files are read how, one row each."""

import os
import re
from collections.abc import Callable
from typing import NamedTuple

from xmr.data.own import annotations, shards, tables
from xmr.data.own.rows import SPLITS, split_in_name
from xmr.errors import UserError

_TABLE = r"\.(csv|tsv|txt|jsonl|ndjson|json|parquet)"


class Format(NamedTuple):
  """A format: its name, a pattern of file names in lower case, and what reads a file into rows."""

  name: str
  pattern: str
  read: Callable


def _table(path, name, **options):
  """Returns the rows of a table, or of a JSON file in any of its layouts."""
  read = annotations.read_json if name.lower().endswith(".json") else tables.read
  return read(path, name, **options)


FORMATS = (
  Format(
    "Karpathy's split file", r"dataset(?!_infos?\.|_dict\.).*\.json(\.gz)?", annotations.read_json
  ),
  Format("COCO's captions", r"captions_.*\.json", annotations.read_json),
  Format("Flickr's token file", r"(?!.*lemma).*\.token(\.txt)?", tables.read),
  Format("metadata of an image folder", r"metadata\.(csv|tsv|jsonl|parquet)", tables.read),
  Format(
    "table of captions",
    rf"(captions?|results(_\d+)?|annotations?)(?<!_){_TABLE}",
    _table,
  ),
  Format(
    "table of captions for each split",
    r"(captions?[_-])?(train|training|val|valid|validation|dev|test)([_-]captions?)?"
    r"([_-]\d+([_-]of[_-]\d+)?)?\.(csv|tsv|jsonl|ndjson|json|parquet)",
    _table,
  ),
)
# Looked for where none of the others is there: archives lie beside what was unpacked from them.
SHARDS = Format("tar shards", r".*\.tar", shards.read)

SUPPORTED = (
  "dataset_*.json (Karpathy), captions_*.json (COCO), *.token (Flickr), metadata.jsonl or .csv, "
  "captions.csv, .tsv, .jsonl, .json or .parquet, or *.tar shards"
)


def find(folder, *, named="", columns=""):
  """Returns (format, [paths below the folder]) of the sources of captions in a folder.

  Args:
    folder: names.Folder.  named: config.data.captions, names with commas between them, or "".
    columns: config.data.columns.
  Raises:
    UserError: none or several; lists what was found.
  """
  if named:
    return _of_name(folder, named)
  known = []
  for path in folder.sources:
    base = os.path.basename(path).lower()
    row = next((row for row in FORMATS if re.fullmatch(row.pattern, base)), None)
    if row:
      known.append((path.count("/"), path, row))
  # The highest: what lies deeper belongs to something else.
  found, least = {}, min((depth for depth, *_ in known), default=0)
  for depth, path, row in known:
    if depth == least:
      found.setdefault(row, []).append(path)
  found = found or _others(folder, columns)
  if not found:
    some = ", ".join(folder.sources[:5]) or "no file but images"
    raise UserError(
      f"config.data.dir: {folder.root} holds no captions that are known ({some}); expected one of "
      f"{SUPPORTED}"
    )
  if len(found) > 1:
    several = ", ".join(paths[0] for paths in found.values())
    raise UserError(
      f"config.data.dir: {folder.root} holds captions in {len(found)} formats ({several}); name "
      "the one that is meant with --config.data.captions=FILE"
    )
  ((row, paths),) = found.items()
  return row, _alike(paths, row, folder)


def _of_name(folder, named):
  paths = [name.strip() for name in named.split(",")]
  for path in paths:
    if path not in folder.sources:
      some = ", ".join(folder.sources[:5]) or "no file but images"
      raise UserError(f"config.data.captions: no {path} in {folder.root} ({some})")
  base = os.path.basename(paths[0]).lower()
  row = next((row for row in (*FORMATS, SHARDS) if re.fullmatch(row.pattern, base)), None)
  if row is None:
    row = Format("table of captions", "", _table)
  return row, paths


def _others(folder, columns):
  """Returns sources under other names: tables whose columns are known, else tar shards."""
  tabular = [p for p in folder.sources if re.fullmatch(rf".*{_TABLE}", p.lower())]
  known = [
    path
    for path in tabular
    if (
      annotations.recognised(os.path.join(folder.root, path), path)
      if path.lower().endswith(".json")
      else tables.recognised(os.path.join(folder.root, path), path, columns)
    )
  ]
  if known:
    return {Format("table of captions", "", _table): known}
  compressed = [p for p in folder.sources if re.fullmatch(r".*\.(tar\.\w+|tgz)", p.lower())]
  tars = [path for path in folder.sources if path.lower().endswith(".tar")]
  if compressed and not tars:
    raise UserError(
      f"{compressed[0]} is compressed, which gives no random access; expected plain .tar shards"
    )
  return {SHARDS: tars} if tars else {}


def _alike(paths, row, folder):
  """Returns the sources of one format that belong together: shards, or one of each split, at the
  same depth.
  """
  if row is SHARDS:
    return paths
  least = min(path.count("/") for path in paths)
  paths = [path for path in paths if path.count("/") == least]
  splits = [split_of_source(path) for path in paths]
  parts = [re.sub(r"\d+([_-]of[_-]\d+)?", "", path) for path in paths]
  numbered = len(set(parts)) < len(parts) and all(p.lower().endswith(".parquet") for p in paths)
  if len(paths) > 1 and not numbered and (None in splits or len(set(splits)) < len(splits)):
    raise UserError(
      f"config.data.dir: {folder.root} holds {', '.join(paths[:4])}; expected one of them, or one "
      f"for each of {', '.join(SPLITS)}: name them with --config.data.captions=FILE,FILE"
    )
  return paths


def split_of_source(path):
  """Returns the split that the name of a source, or of its folder, speaks of, or None."""
  folder, base = os.path.split(path)
  return split_in_name(base) or split_in_name(os.path.basename(folder))
