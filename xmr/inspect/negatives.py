"""How wrong the hardest negatives are: python -m xmr.inspect.negatives --workdir=runs/hn.

For some images of the training split, finds the caption of another image that the run's model ranks
first, and measures how well it describes the image: its ROUGE-L relevance to the image's own
captions. The same is measured for the image's own captions (each against the others) and for random
captions. Writes WORKDIR/negatives.md and negatives.json.
"""

import pathlib
import sys

from xmr import command_line
from xmr.errors import UserError, reported

ABOVE = (0.2, 0.3, 0.4, 0.5)
EXAMPLES = 10


def mined(run, split, *, queries, seed):
  """Finds the hardest negative caption of some images, and the relevance of this caption, of the
  images' own captions and of random ones.

  Args:
    run: Run.  split: Split with N images, all of whose captions are searched.
    queries: images to look at, min(queries, N), drawn by `seed`.
  Returns:
    list of {"image", "name", "captions": the image's own, "negative": the mined caption,
      "negative_of": name of its image, "relevance", "own", "random": ROUGE-L in [0, 1] of the
      mined, own and random captions, own None for an image with one caption, "score": similarity of
      the mined caption, "positive": similarity of the best of the image's own captions}.
  """
  import numpy as np

  from xmr.inspect import study

  image, text = run.embeddings(split)
  captions = study.Relevance(split).captions
  rng = np.random.default_rng(seed)
  rows = np.sort(rng.choice(len(image), min(queries, len(image)), replace=False))
  longest = max(len(own) for own in captions)
  scores, found = study.neighbours(
    image[rows], text, longest + 1, kind=run.config.similarity, text_query=False
  )
  listed = []
  for row, row_scores, row_found in zip(rows, scores, found, strict=True):
    other = split.image_of_text[row_found] != row
    if not other.any():
      continue
    first = int(other.argmax())
    own = [split.texts[i] for i in captions[row]]
    drawn = int(rng.choice(np.flatnonzero(split.image_of_text != row)))
    listed.append(
      {
        "image": int(split.image_id[row]),
        "name": split.image_names[row],
        "captions": own,
        "negative": split.texts[row_found[first]],
        "negative_of": split.image_names[split.image_of_text[row_found[first]]],
        "relevance": relevance(split.texts[row_found[first]], own),
        "own": relevance(own[0], own[1:]) if len(own) > 1 else None,
        "random": relevance(split.texts[drawn], own),
        "score": float(row_scores[first]),
        "positive": float(
          study.neighbours(
            image[row : row + 1],
            text[captions[row]],
            1,
            kind=run.config.similarity,
            text_query=False,
          )[0][0, 0]
        ),
      }
    )
  return listed


def relevance(caption, references):
  """ROUGE-L of a caption against the captions of an image, in [0, 1]."""
  from xmr.eval.relevance import rouge_l

  return float(rouge_l([*references, caption], [0] * len(references) + [1], workers=1)[-1, 0])


def shares(listed):
  """Returns {"mined", "own", "random": {"mean": [], bound: share of relevances >= bound}}."""
  result = {}
  for name, key in (("mined", "relevance"), ("own", "own"), ("random", "random")):
    values = [entry[key] for entry in listed if entry[key] is not None]
    n = max(len(values), 1)
    result[name] = {"mean": sum(values) / n} | {
      f">= {bound:g}": sum(v >= bound for v in values) / n for bound in ABOVE
    }
  return result


def table(listed, *, name, split):
  """Returns the Markdown: the shares of `shares`, the share of negatives that score above the
  positives, and the examples of highest relevance.
  """
  found = shares(listed)
  heads = list(found["mined"])
  rows = [
    f"| {kind} | " + " | ".join(f"{found[kind][head]:.3f}" for head in heads) + " |"
    for kind in found
  ]
  beaten = sum(entry["score"] > entry["positive"] for entry in listed) / max(len(listed), 1)
  lines = [
    f"# The hardest captions of {name}, {split}, {len(listed)} images",
    "",
    "ROUGE-L relevance to the image of: the hardest caption of another image; a caption of its "
    "own against the others; a "
    "random caption.",
    "",
    "| caption | " + " | ".join(heads) + " |",
    "|---" * (len(heads) + 1) + "|",
    *rows,
    "",
    f"{beaten:.1%} of the mined captions score above every caption of the image itself.",
    "",
    f"The {EXAMPLES} of highest relevance:",
    "",
  ]
  for entry in sorted(listed, key=lambda entry: -entry["relevance"])[:EXAMPLES]:
    lines.append(
      f"- {entry['name']}: “{entry['captions'][0]}” / mined ({entry['relevance']:.2f}): "
      f"“{entry['negative']}” "
      f"(of {entry['negative_of']})"
    )
  return "\n".join(lines) + "\n"


def negatives(workdir, *, step="best", split="train", queries=1000, seed=0):
  """Writes negatives.md and negatives.json of a run; returns the Markdown.

  Raises:
    UserError: no run, no checkpoints, missing data, a folder that cannot be written.
  """
  from xmr import data, inspect
  from xmr.storage.files import write_json

  run = inspect.load(workdir, step)
  rows = data.load(run.config)[split]
  listed = mined(run, rows, queries=queries, seed=seed)
  text = table(listed, name=pathlib.Path(workdir).resolve().name, split=split)
  try:
    pathlib.Path(workdir, "negatives.md").write_text(text, encoding="utf-8")
    write_json(
      pathlib.Path(workdir, "negatives.json"),
      {"step": run.step, "shares": shares(listed), "negatives": listed},
    )
  except OSError as error:
    raise UserError(f"cannot write {workdir}/negatives.md: {error.strerror}") from None
  return text


def parser():
  """Returns the parser of the command line."""
  made = command_line.parser("xmr.inspect.negatives", __doc__)
  made.add_argument("--workdir", metavar="DIR", help="folder of the run")
  made.add_argument(
    "--step", default="best", help='checkpoint: "best" (default), "latest" or a number'
  )
  made.add_argument(
    "--split",
    default="train",
    choices=("train", "val", "test"),
    help="captions that are searched (train)",
  )
  made.add_argument("--queries", type=int, default=1000, help="images to look at (1000)")
  made.add_argument("--seed", type=int, default=0, help="chooses those images (0)")
  return made


def main(argv):
  """Runs one command line; raises SystemExit(2) for a user's mistake."""
  with reported():
    arguments = command_line.parsed(parser(), argv[1:], needed=("workdir",), usage="--workdir=DIR")
    if arguments.queries < 1:
      raise UserError(f"--queries is {arguments.queries}; expected 1 or more")
    if arguments.seed < 0:
      raise UserError(f"--seed is {arguments.seed}; expected 0 or more")
    from absl import logging

    logging.set_verbosity(logging.ERROR)
    print(
      negatives(
        arguments.workdir,
        step=arguments.step,
        split=arguments.split,
        queries=arguments.queries,
        seed=arguments.seed,
      )
    )


if __name__ == "__main__":
  main(sys.argv)
