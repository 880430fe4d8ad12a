"""Renders the tables and figures of README.md and docs/ from the records in docs/results/records.

python -m xmr.results                                  write every table and figure anew
python -m xmr.results --check                          status 1 where a page and the records differ
python -m xmr.results --add=runs/mh --row=flickr8k_mh  make a record of a finished run
"""

import pathlib
import sys

from xmr import command_line
from xmr.errors import UserError, reported


def parser():
  """Returns the parser of the command line."""
  made = command_line.parser("xmr.results", __doc__)
  made.add_argument("--root", default=".", help="the repository (this folder)")
  made.add_argument("--check", action="store_true", help="write nothing; say what differs")
  made.add_argument("--add", metavar="WORKDIR", help="folder of a finished run")
  made.add_argument("--row", help="the table row that the run belongs to")
  made.add_argument("--baseline", default="", help="of that run (FG-CMIR), in place of it")
  made.add_argument("--validation", action="store_true", help="its validation metrics alone")
  return made


def main(argv):
  """Runs one command line; SystemExit(2) for a user's mistake, SystemExit(1) where pages differ."""
  with reported():
    arguments = command_line.parsed(parser(), argv[1:])
    if bool(arguments.add) != bool(arguments.row) or (
      (arguments.baseline or arguments.validation) and not arguments.add
    ):
      raise UserError(
        "--add and --row belong together: --add=WORKDIR --row=NAME [--baseline=NAME | --validation]"
      )
    root = pathlib.Path(arguments.root)
    if not (root / "docs" / "results" / "tables.json").is_file():
      raise UserError(f"--root: {root} has no docs/results/tables.json; run in the repository")
    if arguments.add:
      print(
        f"wrote {add(root, arguments.add, arguments.row, arguments.baseline, arguments.validation)}"
      )
    differ = render(root, write=not arguments.check)
    if differ:
      print(("differs: " if arguments.check else "wrote ") + ", ".join(map(str, differ)))
    if differ and arguments.check:
      raise SystemExit(1)


def add(root, workdir, row, baseline="", validation=False):
  """Writes the record of a finished run, of a baseline that it measured, or of its validation;
  returns its path.
  """
  from xmr.results import records
  from xmr.storage.files import write_json

  record = records.of_run(workdir, row, baseline=baseline, validation=validation)
  name = row if record["seed"] is None else f"{row}_seed{record['seed']}"
  path = root / "docs" / "results" / "records" / f"{name}.json"
  write_json(path, record)
  return path


def render(root, *, write):
  """Renders every page and figure; returns the paths that differ from what was there."""
  from xmr.results import render as renderer

  differ = []
  for path, text in renderer.rendered(root).items():
    if path.is_file() and renderer.same(path.read_text(encoding="utf-8"), text):
      continue
    differ.append(path)
    if write:
      path.write_text(text, encoding="utf-8")
  return differ


if __name__ == "__main__":
  main(sys.argv)
