"""Tables of images and captions: CSV, TSV, Flickr's forms, JSON lines, JSON and parquet."""

import csv
import io
import json
import os
import re

from xmr.data.files import opened, read_file
from xmr.data.own.rows import ENDINGS, Row, captions_of, split_of
from xmr.errors import UserError

# Names of columns, the likeliest first; those of captions may end in a number: caption_1.
IMAGE = (
  "file_name filename image_path image_file image_filename image_name image img_path img_name img "
  "filepath file_path path file picture photo image_id img_id"
).split()
CAPTION = (
  "caption captions sentence sentences text texts comment comments description descriptions raw "
  "prompt prompts alt_text alt title"
).split()
SPLIT = "split set subset partition".split()
_MAP = "--config.data.columns=image=NAME,caption=NAME"

_NUMBERED = re.compile(r"(?i)^(.*\.\w+)#\s*\d+$")  # Flickr's tokens: 1000.jpg#0
_LOST_BAR = re.compile(r"^\s*\d+\s+(\S.*)$")  # One line of Flickr30k's results.csv has lost a bar.


def mapping(columns):
  """Returns {"image": [name], "caption": [names], "split": [name]} of config.data.columns.

  Args:
    columns: "image=photo,caption=first|second,split=part", any of the three; or "".
  """
  found = {}
  for item in filter(None, (part.strip() for part in columns.split(","))):
    role, sign, names = item.replace(":", "=", 1).partition("=")
    role = role.strip().lower().rstrip("s")
    role = {"file_name": "image", "text": "caption"}.get(role, role)
    if not sign or role not in ("image", "caption", "split"):
      raise UserError(
        f"config.data.columns is {columns!r}; expected image=NAME,caption=NAME|NAME,split=NAME"
      )
    found[role] = [name.strip() for name in names.split("|") if name.strip()]
  return found


def roles(header, mapped):
  """Returns (column of images, [columns of captions], column of splits or None), or None where
  there is no column of images or none of captions.

  Args:
    header: names of the columns.  mapped: of `mapping`.
  """
  plain = [re.sub(r"[\s-]+", "_", str(name).strip().lower()) for name in header]

  def given(role):
    wanted = {name.strip().lower() for name in mapped[role]}
    return [i for i, name in enumerate(header) if str(name).strip().lower() in wanted]

  def known(names):
    return next(([plain.index(name)] for name in names if name in plain), [])

  image = given("image") if "image" in mapped else known(IMAGE)
  split = given("split") if "split" in mapped else known(SPLIT)
  if "caption" in mapped:
    captions = given("caption") if len(given("caption")) >= len(mapped["caption"]) else []
  else:
    stems = [re.sub(r"_?\d+$", "", name) for name in plain]
    stem = next((name for name in CAPTION if name in stems), None)
    captions = [i for i, name in enumerate(stems) if name == stem]
  captions = [i for i in captions if i not in image and i not in split]
  if not image or not captions or (mapped.get("split") and not split):
    return None
  return image[0], captions, split[0] if split else None


def read(path, name, *, columns="", base=""):
  """Returns the rows of a table.

  Args:
    path: .csv, .tsv, .txt, .token, .jsonl, .json or .parquet.  name: of the file, for errors.
    columns: config.data.columns.  base: folder of the file below the dataset's.
  Returns:
    list of Row, in the order of the file.
  Raises:
    UserError: a column is not found, a line is not as expected; names it.
  """
  rows, mapped, seen = [], mapping(columns), {}
  for where, header, cells in _records(path, name, mapped):
    key = tuple(header)
    if key not in seen:
      seen[key] = roles(header, mapped)
    if seen[key] is None:
      raise _no_columns(where, header, mapped)
    image, captions, split = seen[key]
    rows.append(_row(where, cells, image, captions, split, base))
  if not rows:
    raise UserError(f"{name} holds no captions; expected a row per caption or image")
  return rows


def _row(where, cells, image, captions, split, base):
  shown = cells[image]
  if isinstance(shown, bool) or not isinstance(shown, (str, int)) or not str(shown).strip():
    found = "holds the image itself" if isinstance(shown, (dict, bytes)) else f"is {shown!r:.60}"
    raise UserError(f"{where}: the name of the image {found}; expected the name of its file")
  texts = [text for i in captions for text in captions_of(cells[i], where)]
  if not texts:
    raise UserError(f"{where}: {str(shown)!r:.60} has no caption; expected words")
  part = None
  if split is not None:
    if not isinstance(cells[split], str) or not cells[split].strip():
      raise UserError(f"{where}: split is empty; expected train, val or test, as in other rows")
    part = split_of(cells[split], where)
  shown = str(shown).strip()
  return Row(_NUMBERED.sub(r"\1", shown), texts, part, where, base)


def _no_columns(where, header, mapped):
  if mapped:
    return UserError(
      f"{where}: columns {', '.join(map(repr, header))}; expected those that config.data.columns "
      f"names: {', '.join(repr(name) for names in mapped.values() for name in names)}"
    )
  return UserError(
    f"{where}: columns {', '.join(map(repr, header))}; expected one of file names (file_name, "
    f"image) and one of captions (caption, text); name yours with {_MAP}"
  )


def recognised(path, name, columns=""):
  """Returns whether a file is a table whose columns of images and captions are known."""
  try:
    _, header, _ = next(iter(_records(path, name, mapping(columns))))
    return roles(header, mapping(columns)) is not None
  except (UserError, StopIteration):
    return False


def _records(path, name, mapped):
  """Yields (where, names of the columns, cells) of each row."""
  kind = os.path.splitext(name)[1].lower()
  if kind == ".parquet":
    yield from _parquet(path, name)
  elif kind in (".jsonl", ".ndjson"):
    for number, line in enumerate(decoded(path, name).split("\n"), 1):
      if line.strip():
        where = f"{name}, line {number}"
        record = parsed_json(line, where)
        if not isinstance(record, dict):
          raise UserError(f'{where}: {line.strip()!r:.60}; expected {{"file_name": ..., ...}}')
        yield where, list(record), list(record.values())
  elif kind == ".json":
    for index, record in enumerate(_list_in_json(parsed_json(decoded(path, name), name), name)):
      yield f"{name}, entry {index + 1}", list(record), list(record.values())
  else:
    yield from _delimited(decoded(path, name), name, mapped, tabs=kind == ".tsv")


def _list_in_json(content, name):
  if isinstance(content, dict) and all(isinstance(v, (str, list)) for v in content.values()):
    content = [{"image": image, "captions": captions} for image, captions in content.items()]
  if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
    raise UserError(
      f"{name} is in no layout that is known; expected COCO's, Karpathy's, or [{{\"image\": ..., "
      '"caption": ...}]'
    )
  return content


def parsed_json(text, where):
  """Returns the content of a JSON text; UserError where it is none."""
  try:
    return json.loads(text)
  except (ValueError, RecursionError) as error:
    raise UserError(f"{where} is not JSON: {error}") from None


def decoded(path, name):
  """Returns the text of a UTF-8 or UTF-16 file without its mark; UserError names the line that is
  neither.
  """
  content = read_file(path, what="a table of images and captions")
  if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
    try:
      return content.decode("utf-16")
    except UnicodeDecodeError:
      raise UserError(f"{name} is no whole UTF-16 text; expected UTF-8") from None
  try:
    return content.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    line = content[: error.start].count(b"\n") + 1
    raise UserError(
      f"{name}, line {line}: {content[error.start : error.start + 4]!r} is not UTF-8; expected a "
      "file saved as UTF-8"
    ) from None


def _delimited(text, name, mapped, *, tabs):
  text = text.replace("\r\n", "\n").replace("\r", "\n")
  skipped = len(text) - len(text.lstrip("\n "))
  first, text = text[:skipped].count("\n") + 1, text[skipped:]
  if re.match(r"(?i)\"?sep=.\"?\n", text):  # What Excel writes before the header.
    first, text = first + 1, text.partition("\n")[2]
  head = text.partition("\n")[0]
  if "\0" in head or not head.strip():
    raise UserError(f"{name} is empty, or no text; expected a table of images and captions")
  signs = "\t" if tabs else "\t|;,"
  parts = {sign: [part.strip().strip('"') for part in head.split(sign)] for sign in signs}
  sign = next((s for s in signs if roles(parts[s], mapped)), None)
  if sign:
    lines = _lines(text, sign, name, first)
    header = [cell.strip() for cell in next(lines)[1]]
    found = roles(header, mapped)
    if found is None:  # A quote that is not closed.
      raise _no_columns(f"{name}, line {first}", header, mapped)
    yield from _with_header(lines, header, name, sign, *found[:2])
    return
  sign = next((s for s in signs if len(parts[s]) > 1 and _is_image(parts[s][0])), None)
  if sign is None or mapped:
    sign = max(signs, key=head.count)
    raise _no_columns(f"{name}, line {first}", parts[sign], mapped)
  header = ["image", "caption"]
  if len(parts[sign]) > 2 and re.fullmatch(r"\d+", parts[sign][1]):
    header = ["image", "number", "caption"]
  captions = [len(header) - 1]
  yield from _with_header(_lines(text, sign, name, first), header, name, sign, 0, captions)


def _is_image(cell):
  return _NUMBERED.sub(r"\1", cell.strip()).lower().endswith(ENDINGS)


def _with_header(lines, header, name, sign, image, captions):
  for number, cells in lines:
    where = f"{name}, line {number}"
    if any("\0" in cell for cell in cells):
      raise UserError(f"{where} holds a NUL byte; expected text")
    while len(cells) > len(header) and not cells[-1].strip():
      cells = cells[:-1]
    if len(cells) > len(header) and captions == [len(header) - 1]:
      # A caption in the last column that holds the delimiter and is not in quotes.
      cells = [*cells[: len(header) - 1], sign.join(cells[len(header) - 1 :])]
    if sign == "|" and len(cells) == len(header) - 1 and image == 0:
      lost = _LOST_BAR.match(cells[-1])
      cells = [*cells[:-1], "", lost[1]] if lost else cells
    if len(cells) != len(header):
      raise UserError(
        f"{where}: {len(cells)} fields; expected {len(header)}: {', '.join(header)} (a field that "
        f"holds {sign!r} needs quotes)"
      )
    yield where, header, cells


def _lines(text, sign, name, first):
  """Yields (number of the line, cells); blank lines are left out."""
  if sign in "\t|":
    # Captions of these files hold quotes that quote nothing.
    for number, line in enumerate(text.split("\n"), first):
      if line.strip():
        yield number, [_unquoted(cell.strip(" ")) for cell in line.split(sign)]
    return
  reader = csv.reader(io.StringIO(text, newline=""), delimiter=sign, strict=True)
  found, before = [], 0
  try:
    for cells in reader:
      found.append((first + before, cells))
      before = reader.line_num
  except csv.Error as error:
    # Written without regard to quotes: a name and a caption on each line.
    pairs = [
      (n, line.split(sign, 1)) for n, line in enumerate(text.split("\n"), first) if line.strip()
    ]
    if not all(len(pair) == 2 and _is_image(pair[0]) for _, pair in pairs[1:]):
      raise UserError(
        f"{name}, line {first + before}: {error}; expected a quote inside a quoted field to be "
        'doubled, "a ""big"" dog"'
      ) from None
    found = [(number, [_unquoted(cell.strip()) for cell in pair]) for number, pair in pairs]
  yield from ((number, cells) for number, cells in found if any(cell.strip() for cell in cells))


def _unquoted(cell):
  inner = cell[1:-1]
  quoted = len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inner.replace('""', "")
  return inner.replace('""', '"') if quoted else cell


def _parquet(path, name):
  try:
    import pyarrow
    from pyarrow import parquet
  except ImportError:
    raise UserError(
      f"{name}: reading parquet needs pyarrow; pip install -e '.[parquet]', or save the table as "
      "CSV"
    ) from None
  try:
    with opened(path, what="a parquet table") as content, parquet.ParquetFile(content) as file:
      header, number = file.schema_arrow.names, 0
      for batch in file.iter_batches():
        for cells in zip(*(column.to_pylist() for column in batch.columns), strict=True):
          number += 1
          yield f"{name}, row {number}", header, list(cells)
  except (pyarrow.ArrowException, OSError) as error:
    raise UserError(f"{name} is no parquet table: {error}") from None
