"""Writes one page that shows what a run retrieves: python -m xmr.inspect.report --workdir=runs/imc
[--compare=runs/mh].

The page is WORKDIR/report.html (or --out=FILE). It needs no network and no other file.
"""

import pathlib
import sys

from xmr import command_line
from xmr.errors import UserError, reported

QUERIES = 6  # of the qualitative study
LISTED = 8  # worst queries, hubs, tied queries
DEPTH = 10  # of the lists in which hubs are counted
FAR = 3  # answers shown beside a failed query


def report(workdir, *, compare=None, out=None, step="best", queries=QUERIES, seed=0, limit=None):
  """Writes the page of a run.

  Args:
    workdir: folder of the run.  compare: folder of another run on the same split, or None.
    out: file to write; None: workdir/report.html.
    step: "best", "latest" or a number, of workdir; the other run shows its best.
    queries: query images of the qualitative study, chosen by `seed`.
    limit: captions that the page's search knows; None: as `page.search_data`.
  Returns:
    path of the page.
  Raises:
    UserError: no run, no checkpoints, missing data, two runs on different splits, a file that
      cannot be written.
  """
  shown = [_Scored(workdir, step)]
  if compare is not None:
    shown.append(_Scored(compare, "best"))
    from xmr.inspect import study

    study.same_split(shown[0].split, shown[1].split, names=(workdir, compare))
  context = _context(shown, queries=queries, seed=seed, limit=limit)
  html = _fitted(context, shown[0])
  path = pathlib.Path(out) if out else pathlib.Path(workdir) / "report.html"
  try:
    path.write_text(html, encoding="utf-8", errors="replace")
  except OSError as error:
    raise UserError(f"cannot write {path}: {error.strerror}") from None
  return path


class _Scored:
  """A run with its test split, embeddings, results and the rank of every query."""

  def __init__(self, workdir, step):
    from xmr import data
    from xmr.eval import results
    from xmr.inspect import loading, study

    self.run = loading.load(workdir, step, as_scored=True)
    self.config, self.name = self.run.config, pathlib.Path(workdir).resolve().name
    self.split = data.load(self.config)[self.config.evaluate.split]
    self.image, self.text = self.run.embeddings(self.split)
    self.results = results.report(
      self.image,
      self.text,
      self.split,
      config=self.config,
      step=self.run.step,
      only=("recall",),
    )
    self._add_written()
    self.outcomes = study.outcomes(
      self.image, self.text, self.split.image_of_text, kind=self.config.similarity
    )

  def _add_written(self):
    """Adds metrics of results.json that are not computed here, such as graded ones and those of
    averaged weights, if they are of this step.
    """
    from xmr.storage.files import read_json

    try:
      found = read_json(self.run.workdir / "results.json")
      if (found["step"], found["split"]) == (self.run.step, self.split.name):
        computed = self.results["metrics"]
        computed |= {name: x for name, x in found["metrics"].items() if name not in computed}
        self.results |= {"wise": found["wise"]} if "wise" in found else {}
    except (UserError, KeyError, TypeError):
      return


def _context(shown, *, queries, seed, limit):
  """Returns all that the template shows except the thumbnails."""
  import numpy as np

  from xmr import config as config_lib
  from xmr.inspect import charts, page, study

  first = shown[0]
  split, kind, image, text = first.split, first.config.similarity, first.image, first.text
  spice = _spice(first.config)
  relevance = study.Relevance(split, spice=spice)
  rng = np.random.default_rng(seed)
  rows = np.sort(rng.choice(len(image), min(queries, len(image)), replace=False))
  lists = {
    "t2i": study.neighbours(text, image, DEPTH, kind=kind, text_query=True),
    "i2t": study.neighbours(image, text, DEPTH, kind=kind, text_query=False),
  }
  return {
    "name": first.name,
    "columns": list(COLUMNS.values()),
    "results": first.results,
    "names": [run.name for run in shown],
    "matrix": _matrix(shown),
    "figures": _figures(shown),
    "charts": charts.charts([(run.name, run.run.metrics) for run in shown]),
    "wise": [
      (run.name, run.results["wise"], charts.averaged(run.results["wise"]))
      for run in shown
      if "wise" in run.results
    ],
    "split": split,
    "clipped": page.clipped,
    "captions_of": relevance.captions,
    "relevance_names": relevance.names,
    "spice": spice,
    "studies": [
      (
        run.name,
        study.qualitative(
          run.image, run.text, split, relevance, kind=run.config.similarity, rows=rows
        ),
      )
      for run in shown
    ],
    "worst": {
      task: _failed(first, task, lists, study.worst(first.outcomes[task]["rank"], LISTED))
      for task in lists
    },
    "matches": _matches(first, lists["t2i"][1]),
    "hubs": {
      task: study.hubs(found, len(image if task == "t2i" else text), LISTED)
      for task, (_, found) in lists.items()
    },
    "depth": {task: found.shape[1] for task, (_, found) in lists.items()},
    "tied": {task: _tied(first, task) for task in lists},
    "lengths": study.by_length(
      np.array([len(tokens) for tokens in split.tokens]), first.outcomes["t2i"]["rank"]
    ),
    "differences": _differences(shown) if len(shown) > 1 else None,
    "search": page.search_data(image, text, split, kind=kind, limit=limit),
    "config": config_lib.flat(first.config),
    "seed": seed,
  }


def _matches(run, found):
  """Returns [(title, base64 of a PNG)] of the words and the regions or patches that they matched;
  [] if the run does not compare tokens.
  """
  from xmr.ops.alignment import NAMES

  if run.config.data.image != "regions" and run.config.similarity not in NAMES:
    return []
  import base64
  import io

  from xmr.inspect import matches

  hits, misses = matches.hits_and_misses(
    run.outcomes["t2i"]["rank"], run.split.image_of_text, found
  )
  made = []
  for title, pairs in (("First place", hits), ("Far behind, after what came first", misses)):
    if pairs:
      file = io.BytesIO()
      figure = matches.drawn(run.run, run.split, pairs, folder=run.config.data.dir)
      figure.savefig(file, format="png")
      made.append((title, base64.b64encode(file.getvalue()).decode("ascii")))
  return made


def _spice(config):
  if not config.evaluate.spice:
    return ""
  path = pathlib.Path(config.data.dir) / config.evaluate.spice
  return str(path) if path.exists() else ""


COLUMNS = {"r1": "R@1", "r5": "R@5", "r10": "R@10", "medr": "median rank", "meanr": "mean rank"}
DIRECTIONS = {"i2t": "image to text", "t2i": "text to image"}


def _matrix(shown):
  """Returns rows (run, direction, [value of each of COLUMNS or None]) of the first table."""
  return [
    (run.name, title, [run.results["metrics"].get(f"{side}/{name}") for name in COLUMNS])
    for run in shown
    for side, title in DIRECTIONS.items()
  ]


def _figures(shown):
  """Returns rows (name, [value of each run], paired bootstrap of the difference or None) of the
  second table: metrics that the matrix does not show and, with two runs, those that differ.
  """
  from xmr.eval import significance

  rows = []
  inside = {f"{side}/{name}" for side in DIRECTIONS for name in COLUMNS}
  for name, value in shown[0].results["metrics"].items():
    if len(shown) == 1 and name in inside:
      continue
    values = [value, *(run.results["metrics"].get(name) for run in shown[1:])]
    direction, _, figure = name.partition("/")
    test = None
    if len(shown) > 1 and direction in ("i2t", "t2i") and figure in ("r1", "r5", "r10"):
      hits = [100.0 * (run.outcomes[direction]["rank"] < int(figure[1:])) for run in shown]
      group = shown[0].split.image_of_text if direction == "t2i" else None
      test = significance.paired_bootstrap(hits[1], hits[0], group=group, samples=2000)
    rows.append((name, values, test))
  return rows


def _failed(run, task, lists, queries):
  """Returns [{"row", "rank" from 1, "ties", "found": [answer]}] of some queries."""
  from xmr.inspect import study

  of, found = run.split.image_of_text, []
  for row in queries:
    scores, items = lists[task][0][row][:FAR], lists[task][1][row][:FAR]
    right = [of[row] == item if task == "t2i" else of[item] == row for item in items]
    found.append(
      {
        "row": int(row),
        "rank": int(run.outcomes[task]["rank"][row]) + 1,
        "ties": int(run.outcomes[task]["ties"][row]),
        "found": [study.answer(*x) for x in zip(items, scores, right, strict=True)],
      }
    )
  return found


def _tied(run, task):
  """Returns {"count", "rows": [(row, rank from 1, ties)]}, the queries with most ties first."""
  import numpy as np

  rank, ties = run.outcomes[task]["rank"], run.outcomes[task]["ties"]
  rows = [row for row in np.argsort(-ties, kind="stable")[:LISTED] if ties[row]]
  return {
    "count": int(np.count_nonzero(ties)),
    "rows": [(int(row), int(rank[row]) + 1, int(ties[row])) for row in rows],
  }


def _differences(shown):
  """Returns, for each of two runs, the captions whose image it ranks much better than the other:
  [(row, rank in the first run, rank in the second)].
  """
  import numpy as np

  # Reciprocal ranks are compared: from 1 to 5 matters, from 301 to 305 does not.
  ranks = [run.outcomes["t2i"]["rank"] + 1 for run in shown]
  gain = 1 / ranks[0] - 1 / ranks[1]
  order = np.argsort(-gain, kind="stable")
  sides = (
    order[:LISTED][gain[order[:LISTED]] > 0],
    order[::-1][:LISTED][gain[order[::-1][:LISTED]] < 0],
  )
  return [[(int(row), int(ranks[0][row]), int(ranks[1][row])) for row in side] for side in sides]


def _fitted(context, run):
  """Returns the page with as many thumbnails as fit."""
  from xmr.inspect import page

  bare = page.render("report.html.j2", **context, thumbnails={}, left=0)
  rows = [row for row in _needed(context)] + context["search"]["images"]
  made, left = page.thumbnails(
    run.split,
    rows,
    folder=run.config.data.dir,
    budget=page.LIMIT - len(bare.encode("utf-8", "replace")),
  )
  return page.render("report.html.j2", **context, thumbnails=made, left=left)


def _needed(context):
  """Yields the images that the page itself shows."""
  for _, studies in context["studies"]:
    for one in studies:
      yield one["row"]
      yield from (
        x["row"] for found in (one["i2i"], *(c["t2i"] for c in one["captions"])) for x in found
      )
  for failed in context["worst"]["t2i"]:
    yield context["split"].image_of_text[failed["row"]]
    yield from (x["row"] for x in failed["found"])
  yield from (failed["row"] for failed in context["worst"]["i2t"])
  yield from (item for item, _ in context["hubs"]["t2i"]["items"])
  for side in context["differences"] or ():
    yield from (context["split"].image_of_text[row] for row, *_ in side)


def parser():
  """Returns the parser of the command line."""
  made = command_line.parser("xmr.inspect.report", __doc__)
  made.add_argument("--workdir", metavar="DIR", help="folder of the run")
  made.add_argument("--compare", metavar="DIR", help="folder of a second run on the same split")
  made.add_argument(
    "--out", metavar="FILE", help="where to write the page; WORKDIR/report.html unless given"
  )
  made.add_argument(
    "--step", default="best", help='checkpoint: "best" (default), "latest" or a number'
  )
  made.add_argument(
    "--queries",
    type=int,
    default=QUERIES,
    help=f"query images of the qualitative study ({QUERIES})",
  )
  made.add_argument("--seed", type=int, default=0, help="chooses those images (0)")
  return made


def main(argv):
  """Runs one command line; raises SystemExit(2) for a user's mistake."""
  with reported():
    arguments = command_line.parsed(parser(), argv[1:], needed=("workdir",), usage="--workdir=DIR")
    if arguments.queries < 0:
      raise UserError(f"--queries is {arguments.queries}; expected 0 or more")
    if arguments.seed < 0:
      raise UserError(f"--seed is {arguments.seed}; expected 0 or more")
    from absl import logging

    logging.set_verbosity(logging.ERROR)
    path = report(
      arguments.workdir,
      compare=arguments.compare,
      out=arguments.out,
      step=arguments.step,
      queries=arguments.queries,
      seed=arguments.seed,
    )
    print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
  main(sys.argv)
