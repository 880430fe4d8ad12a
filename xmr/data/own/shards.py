"""Tar shards of NAME.jpg with NAME.txt or NAME.json, as webdataset and img2dataset write them."""

import os
import tarfile

from xmr.data.files import opened
from xmr.data.own.rows import ENDINGS, Row, captions_of, split_of
from xmr.data.own.tables import CAPTION, SPLIT, parsed_json
from xmr.errors import UserError

_TEXTS = (".txt", ".json")


def read(path, name, *, columns="", base=""):
  """Returns the rows of a shard in the order of its images, each with its offset in the file.

  Args:
    path: .tar, not compressed: images are read by their offsets.
    name: of the shard, for errors.
    columns: unused.  base: folder of the shard below the dataset's.
  Raises:
    UserError: no tar file, a damaged one, or a member that is not as expected; names it. A sample
      without an image or without captions is an error too.
  """
  del columns
  samples = _samples(path, name)
  rows = []
  for key, parts in samples.items():
    where = f"{name}, {key}"
    images = [ending for ending in parts if ending in ENDINGS]
    if not images:
      raise UserError(f"{where}: no image ({', '.join(sorted(parts))}); expected {key}.jpg")
    texts, part = _captions(parts, where)
    if not texts:
      raise UserError(f"{where}: no caption; expected {key}.txt, or {key}.json with caption")
    image = parts[images[0]]
    found = split_of(part, where) if part else None
    rows.append(Row(f"{name}/{key}{images[0]}", texts, found, where, base, (path, *image)))
  if not rows:
    raise UserError(f"{name} holds no images with captions; expected NAME.jpg and NAME.txt")
  return rows


def _samples(path, name):
  """Returns {key: {ending: (offset, bytes) of an image, or the text}} in the order of the shard.

  A key ends at the first period of the name, as webdataset has it; at the last one where no sample
  is whole otherwise.
  """
  members = []
  try:
    with opened(path, what="a tar file") as file, tarfile.open(fileobj=file, mode="r:") as tar:
      for member in tar:
        ending = os.path.splitext(member.name)[1].lower()
        if not member.isfile() or ending not in (*ENDINGS, *_TEXTS):
          continue
        content = (member.offset_data, member.size)
        if ending in _TEXTS:
          text = tar.extractfile(member)
          assert text is not None  # It is a file.
          content = _text(text.read(), f"{name}, {member.name}")
        members.append((member.name.removeprefix("./"), content))
  except (tarfile.TarError, EOFError) as error:
    raise UserError(
      f"{name} is no whole tar file: {error}; expected one that is not compressed"
    ) from None
  samples = _grouped(members, name, first=True)
  if not any(set(parts) & set(ENDINGS) and set(parts) & set(_TEXTS) for parts in samples.values()):
    samples = _grouped(members, name, first=False)
  return samples


def _grouped(members, name, *, first):
  samples = {}
  for path, content in members:
    folder, base = os.path.split(path)
    stem, _, ending = base.partition(".") if first else base.rpartition(".")
    ending = f".{ending.lower()}"
    if not stem or ending not in (*ENDINGS, *_TEXTS):
      continue
    key = os.path.join(folder, stem)
    sample = samples.setdefault(key, {})
    if ending in sample:
      raise UserError(f"{name}: {key}{ending} is there twice; expected each name once")
    sample[ending] = content
  return samples


def _text(content, where):
  try:
    return content.decode("utf-8-sig")
  except UnicodeDecodeError:
    raise UserError(f"{where} is not UTF-8; expected a caption in UTF-8") from None


def _captions(parts, where):
  """Returns (captions, split or None); each line of the .txt is a caption, the .json has a table's
  fields.
  """
  texts, split = [], None
  for line in parts.get(".txt", "").splitlines():
    texts += captions_of(line, where)
  if ".json" in parts:
    record = parsed_json(parts[".json"], f"{where}.json")
    if not isinstance(record, dict):
      raise UserError(f'{where}.json: {record!r:.60}; expected {{"caption": ...}}')
    known = {key.lower(): value for key, value in record.items()}
    split = next((known[key] for key in SPLIT if isinstance(known.get(key), str)), None)
    field = next((key for key in CAPTION if known.get(key)), None)
    if not texts and field:
      texts = captions_of(known[field], where)
  return texts, split
