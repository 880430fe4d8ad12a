"""The table of metrics, one row each. A new metric needs a function and a row of EVALUATORS.

Runs and files read the same rows: an option is the field config.evaluate.NAME of a run and the flag
--NAME of `python -m xmr.eval`. A row names its function by its path, so this module imports neither
the metrics nor JAX, which configs and --help do not need.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping

from xmr.errors import UserError
from xmr.fields import Field, constant, field, resolve

KINDS = constant("xmr.ops.similarity.VECTORS")
TOKENS = constant("xmr.ops.alignment.NAMES")
BIG = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Evaluator:
  """A family of metrics: its function, its options, and what it needs.

  Attributes:
    function: f(image [N, D], text [T, D], truth, *, kind, **options) -> {name: value}; or its path,
      "package.module.name". A value is a number; but "queries/NAME" is an array, what each query
      scores, for queries.npz, and "DIRECTION/ties" counts tied queries. `truth` is a
      truth.GroundTruth.
    options: {name: Field}, with default, meaning and range.
    needs: {option: fields of the truth that it needs}: the metric is scored where one of these
      options is set; {}: always.
    check: g(truth, *, kind, **options), or its path: raises UserError for what cannot be scored, so
      that a run says so before it trains; "": nothing to check.
    kinds: of similarity that it can score.
    files: options that are paths.
  """

  function: str | Callable
  options: Mapping[str, Field] = dataclasses.field(default_factory=dict)
  needs: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  check: str | Callable = ""
  kinds: tuple[str, ...] = KINDS
  files: tuple[str, ...] = ()


def option(default, about, **limits):
  """Declares an option; it may change between two starts of a run, as all metrics may."""
  return field(default, about, resumable=True, **limits)


EVALUATORS = {
  # R@1, R@5, R@10, median and mean rank.
  "recall": Evaluator(
    "xmr.eval.evaluators.recall",
    options={
      "folds": option(
        1,
        "also average recall over so many equal parts of the images; 5 is COCO's 1K",
        at_least=1,
        at_most=BIG,
      ),
    },
    check="xmr.eval.evaluators.check_recall",
    kinds=(*KINDS, *TOKENS),
  ),
  # Ranking in two stages, and how much recall it loses against ranking all.
  "shortlist": Evaluator(
    "xmr.eval.evaluators.shortlist",
    options={
      "shortlist": option(
        0,
        "kinds of tokens: also rank so many items by pooled tokens, then by alignment; 0: do not",
        at_least=0,
        at_most=BIG,
      ),
    },
    needs={"shortlist": ()},
    # With pooled tokens alone there is no second stage.
    kinds=tuple(kind for kind in TOKENS if kind != "pooled"),
  ),
  # nDCG, alpha-nDCG, novelty, coverage and diversity in i2t, t2i, i2i and t2t.
  "graded": Evaluator(
    "xmr.eval.evaluators.graded",
    options={
      "graded": option(False, "graded retrieval in four tasks, by ROUGE-L of the captions"),
      "spice": option("", "file of SPICE relevance for the same, in the released layout"),
      "relevance": option("", "file of any relevance for the same: [T, N] .npy in [0, 1]"),
      "k": option(25, "graded: length of a list", at_least=1, at_most=BIG),
      "alpha": option(0.5, "graded: of alpha-nDCG", at_least=0, at_most=1),
      "form": option("released", "graded: of the means", choices=("released", "standard")),
      "novelty": option("corrected", "graded: of novelty", choices=("corrected", "first")),
      "diversity": option(
        "once",
        "graded: i2i/list_cosine counts an image once, or once per caption (released)",
        choices=("once", "released"),
      ),
      "include_self": option(True, "graded: i2i and t2t rank the query itself too, as released"),
    },
    needs={"graded": ("texts",), "spice": (), "relevance": ()},
    check="xmr.eval.evaluators.check_graded",
    kinds=(*KINDS, *TOKENS),
    files=("spice", "relevance"),
  ),
  # Does a pair outrank the neighbours of its two sides?
  "consistency": Evaluator(
    "xmr.eval.evaluators.consistency",
    options={"consistency": option(False, "order consistency of pairs with their neighbours")},
    needs={"consistency": ()},
    kinds=("cosine",),
  ),
  # More positives than the dataset's own pairs.
  "eccv_caption": Evaluator(
    "xmr.eval.evaluators.eccv_caption",
    options={
      "positives": option("", "folder of ECCV Caption's JSON files, CxC's among them: COCO 5K")
    },
    needs={"positives": ("image_id", "text_id")},
    check="xmr.eval.evaluators.check_eccv_caption",
    files=("positives",),
  ),
  # Human judgements of pairs of captions.
  "sts": Evaluator(
    "xmr.eval.evaluators.sts",
    options={"sts": option("", "CSV of caption pairs rated by people, of Crisscrossed Captions")},
    needs={"sts": ("text_id",)},
    check="xmr.eval.evaluators.check_sts",
    files=("sts",),
  ),
  # Mean average precision where all items of the query's category are relevant.
  "category": Evaluator(
    "xmr.eval.evaluators.category",
    options={
      "category": option(False, "mean average precision by the categories of the images"),
      "category_at": option(
        0, "category: of the first so many results alone; 0: all", at_least=0, at_most=BIG
      ),
    },
    needs={"category": ("label",)},
    kinds=("cosine", "dot"),
  ),
}


def options():
  """Returns {name: Field} of all options, by the rows that stand in the table now."""
  return {name: each for row in EVALUATORS.values() for name, each in row.options.items()}


def wanted(values):
  """Returns {name: row} of what options {name: value} ask for."""
  return {
    name: row
    for name, row in EVALUATORS.items()
    if not row.needs or any(values[each] for each in row.needs)
  }


def limited(values, names):
  """Returns options {name: value} that ask for no other evaluators than the named ones."""
  off = {each for name, row in EVALUATORS.items() if name not in names for each in row.needs}
  return {name: type(value)() if name in off else value for name, value in values.items()}


def of_config(config):
  """Returns {name: value} of a run's options; files are relative to config.data.dir."""
  values = {name: config.evaluate[name] for name in options()}
  folder = os.path.expanduser(config.data.dir)
  for row in EVALUATORS.values():
    for name in row.files:
      if values[name]:
        values[name] = os.path.join(folder, os.path.expanduser(values[name]))
  return values


def check(truth, values, *, kind, named="config.evaluate."):
  """Raises UserError where an option asks for what the ground truth or a file cannot give.

  Args:
    truth: GroundTruth.  values: {option: value}.  kind: of similarity.
    named: what stands before the name of an option in an error.
  """
  for name, each in options().items():
    each.check(named + name, values[name])
  for row in wanted(values).values():
    for name, needed in row.needs.items():
      missing = [part for part in needed if getattr(truth, part) is None]
      if values[name] and missing:
        from xmr.eval.truth import SAID

        raise UserError(f"{named}{name} needs {SAID[missing[-1]]}: {truth.source}")
      if values[name] and kind not in row.kinds:
        raise UserError(f"{named}{name} knows {', '.join(row.kinds)} similarity; found {kind}")
    if row.check:
      resolve(row.check)(truth, kind=kind, **_of(row, values))


def evaluate(image, text, truth, values, *, kind):
  """Scores embeddings by every row that the options ask for.

  Args:
    image: [N, D] float, possibly over several devices.  text: [T, D] float.  truth: GroundTruth.
    values: {option: value}, checked.  kind: of similarity.
  Returns:
    {name: value} of all rows, as `Evaluator.function`.
  Raises:
    UserError: as the metrics.  ValueError: two rows have a name in common.
  """
  found = {}
  for name, row in wanted(values).items():
    scores = resolve(row.function)(image, text, truth, kind=kind, **_of(row, values))
    if set(found) & set(scores):
      raise ValueError(f"evaluator {name} returns {min(set(found) & set(scores))} once more")
    found |= scores
  return found


def _of(row, values):
  return {name: values[name] for name in row.options}
