"""Searches a folder of images: python -m xmr.search --workdir=runs/imc --gallery=FOLDER "two dogs
in snow".

With --image=FILE the query is an image. The folder is encoded once and kept; a stopped command
goes on where it was. Prints rank, score and path, best first. A run on image features searches
--gallery=FILE.npy; a query is then a caption, or a row: --image=FILE.npy:17, and for a run on text
features "FILE.npy:17". A run on regions takes the mask of the gallery's regions, too: --mask=FILE.
"""

import pathlib
import sys
import time

from xmr import command_line
from xmr.errors import UserError, reported


def parser():
  """Returns the parser of the command line."""
  made = command_line.parser("xmr.search", __doc__)
  made.add_argument("query", nargs="?", help="a caption")
  made.add_argument("--image", metavar="FILE", help="an image to look for, or FILE.npy:ROW")
  made.add_argument("--workdir", metavar="DIR", help="folder of the run")
  made.add_argument("--gallery", metavar="FOLDER", help="of images, with subfolders; or FILE.npy")
  made.add_argument("--mask", metavar="FILE", help=".npy [N, R] bool of the gallery's regions")
  made.add_argument("-k", "--k", type=int, default=10, help="answers (10)")
  made.add_argument("--html", metavar="FILE", help="write a page with thumbnails, too")
  made.add_argument(
    "--index",
    default="exact",
    help="exact (default) or faiss: approximate, for millions of images",
  )
  made.add_argument(
    "--step", default="best", help='checkpoint: "best" (default), "latest" or a number'
  )
  made.add_argument(
    "--cache_dir",
    metavar="DIR",
    help="where embeddings are kept; the run's data.cache_dir unless given",
  )
  return made


def main(argv):
  """Runs one command line; raises SystemExit(2) for a user's mistake."""
  with reported():
    arguments = command_line.parsed(
      parser(),
      argv[1:],
      needed=("workdir", "gallery"),
      usage='--workdir=DIR --gallery=FOLDER "a caption"',
    )
    check(arguments)
    from absl import logging

    logging.set_verbosity(logging.ERROR)
    search(arguments)


def check(arguments):
  """Raises UserError for arguments that are wrong by themselves."""
  if (arguments.query is None) == (arguments.image is None):
    found = "neither" if arguments.query is None else "both"
    raise UserError(f"{found} of a caption and --image given; expected one of them")
  if arguments.query is not None and not arguments.query.strip():
    raise UserError("the query is empty; expected a caption")
  if arguments.k < 1:
    raise UserError(f"-k is {arguments.k}; expected 1 or more")


def search(arguments):
  """Answers one query: prints the ranking, and writes the page where one is asked for."""
  from xmr import inspect
  from xmr.inspect import index as galleries
  from xmr.ops.alignment import NAMES

  run = inspect.load(arguments.workdir, arguments.step)
  if run.config.data.image == "regions":
    search_regions(run, arguments)
    return
  if arguments.mask:
    raise UserError(f"--mask is of regions; {run.workdir} was trained on {run.config.data.image}")
  # The query first, so that a mistake in it shows before a folder is encoded.
  query = encoded(run, arguments)
  on_features = run.config.data.image == "features"
  if run.config.similarity in NAMES:
    raise UserError(
      f"{run.workdir} compares tokens ({run.config.similarity}), of which this command keeps no "
      "gallery; expected a run with config.similarity=cosine, or xmr.inspect.load(DIR).search"
    )
  if on_features:
    if arguments.html:
      raise UserError(f"--html needs pictures; {run.workdir} was trained on image features")
    gallery = galleries.encode_features(run, features_file(run, arguments.gallery))
  else:
    gallery = galleries.encode_folder(run, arguments.gallery, cache_dir=arguments.cache_dir)
  index = galleries.Index(gallery.embeddings, kind=run.config.similarity, backend=arguments.index)
  begun = time.perf_counter()
  scores, found = index.search(query, arguments.k, text_query=arguments.image is None)
  seconds = time.perf_counter() - begun
  for rank, (score, row) in enumerate(zip(scores, found, strict=True), 1):
    name = gallery.names[row]
    print(f"{rank:4}  {score:7.4f}  {gallery.folder}{':' if on_features else '/'}{name}")
  what = "rows" if on_features else "pictures"
  say(
    f"{len(gallery.names):,} {what} ({gallery.encoded:,} newly encoded), ranked in "
    f"{1000 * seconds:.1f} ms"
  )
  if gallery.skipped:
    say(f"skipped {len(gallery.skipped)} unreadable:")
    for _, reason in gallery.skipped:
      say(f"  {reason}")
  if arguments.html:
    say(f"wrote {write_page(run, arguments, gallery, scores, found)}")


def search_regions(run, arguments):
  """Answers one query of a run on regions, whose gallery is a file of them."""
  from xmr.inspect import index as galleries

  if arguments.html or arguments.index != "exact":
    raise UserError(f"{run.workdir} was trained on regions; --html and --index are of pictures")
  if arguments.image is not None:
    query, task = row_of(run, arguments.image), "i2i"
  else:
    check_words(run, arguments.query)
    query, task = [arguments.query], "t2i"
  gallery = regions = galleries.rows_of(features_file(run, arguments.gallery))
  if arguments.mask:
    gallery = (regions, galleries.rows_of(features_file(run, arguments.mask)))
  begun = time.perf_counter()
  k = min(arguments.k, len(regions))
  scores, found = run.search(query, gallery, k, task=task)
  for rank, (score, row) in enumerate(zip(scores[0], found[0], strict=True), 1):
    print(f"{rank:4}  {score:7.4f}  {arguments.gallery}:{row}")
  seconds = time.perf_counter() - begun
  say(f"{len(regions):,} rows, encoded and ranked in {seconds:.1f} s")


def say(text):
  print(text, file=sys.stderr)


def encoded(run, arguments):
  """Returns the query's embedding, [D] float32; prints its unknown words, and raises UserError if
  it has no known word.
  """
  if arguments.image is not None:
    if run.config.data.image == "features":
      return run.encode_image(row_of(run, arguments.image))[0]
    return run.encode_image([arguments.image])[0]
  if not run.known_words:
    return run.encode_text(row_of(run, arguments.query))[0]
  check_words(run, arguments.query)
  return run.encode_text([arguments.query])[0]


def check_words(run, query):
  """Says which words of a caption the run does not know; UserError where it knows none."""
  unknown, words = run.unknown_words(query)
  if len(unknown) == len(words):
    known = run.known_words
    raise UserError(
      f"all words are unknown to the run ({', '.join(unknown)}); its vocabulary has {known:,} words"
    )
  if unknown:
    say(f"unknown to the run, and read as one unknown word: {', '.join(unknown)}")


def features_file(run, name):
  """Returns the name of a .npy file; UserError for anything else."""
  if not name.endswith(".npy") or not pathlib.Path(name).is_file():
    raise UserError(
      f"{run.workdir} was trained on features, and {name} is no .npy file of them; python -m "
      "xmr.extract makes one from pictures"
    )
  return name


def row_of(run, name):
  """Returns [1, ...] float, a row of "FILE.npy:ROW"; UserError for anything else."""
  from xmr.inspect import index as galleries

  path, _, row = name.rpartition(":")
  if not (row.isdecimal() and len(row) < 19):
    raise UserError(
      f"{run.workdir} was trained on features; the query is {name!r}, expected a row of a file of "
      "them: FILE.npy:ROW"
    )
  rows = galleries.rows_of(features_file(run, path))
  if int(row) >= len(rows):
    raise UserError(f"{path} has {len(rows):,} rows; expected one of 0 to {len(rows) - 1}")
  return rows[int(row) : int(row) + 1]


def write_page(run, arguments, gallery, scores, found):
  """Writes the answers as a page with thumbnails; returns its path."""
  import base64

  from xmr.inspect import page, pictures

  budget, items = page.LIMIT, []

  def shown(path):
    nonlocal budget
    if budget <= 0:
      return ""
    encoded = base64.b64encode(
      pictures.thumbnail(pictures.opened(path), side=2 * page.THUMBNAIL)
    ).decode()
    budget -= len(encoded)
    return encoded

  query = shown(arguments.image) if arguments.image else ""
  for score, row in zip(scores, found, strict=True):
    name = gallery.names[row]
    items.append({"name": name, "score": float(score), "thumbnail": shown(gallery.folder / name)})
  html = page.render(
    "search.html.j2",
    query=arguments.query or arguments.image,
    thumbnail=query,
    items=items,
    total=len(gallery.names),
    folder=str(gallery.folder),
    run=run,
    skipped=gallery.skipped,
    bare=sum(not item["thumbnail"] for item in items),
  )
  path = pathlib.Path(arguments.html)
  try:
    path.write_text(html, encoding="utf-8", errors="replace")
  except OSError as error:
    raise UserError(f"cannot write {path}: {error.strerror}") from None
  return path


if __name__ == "__main__":
  main(sys.argv)
