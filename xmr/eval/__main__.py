"""Scores embeddings of any model, and baselines without training, by one protocol.

  python -m xmr.eval --image=I.npy --text=T.npy --image_of_text=M.npy [--captions=dataset.json]
  [--out=DIR]
  python -m xmr.eval --config=configs/NAME.py:VARIANT --baseline=raw,cca [--out=DIR]

I.npy is [N, D], T.npy [T, D] and M.npy [T] int: the image (row of I.npy) of each caption. Recall,
median and mean rank are always scored; graded retrieval in four tasks with --captions (ROUGE-L),
--spice or --relevance; extra positives and human judgements with --positives and --sts. --baseline
takes --image and --text for features: raw scores them as they are, cca after a linear CCA fitted on
--train_image, --train_text and --train_image_of_text. With --config, features, captions and ids
come from the dataset of that config (--config.data.dir=DIR).
"""

import pathlib
import sys

from absl import flags
from ml_collections import config_flags

from xmr import command_line
from xmr.errors import UserError, reported

BASELINES = ("raw", "cca")


def define():
  """Returns the flags of this command, in a set of their own."""
  own = flags.FlagValues()
  for name, text in (
    ("image", "[N, D] .npy, embeddings of the images"),
    ("text", "[T, D] .npy, embeddings of the captions"),
    ("image_of_text", "[T] .npy, integers: the row of --image that each caption describes"),
    ("relevance", "[T, N] .npy in [0, 1], for graded retrieval"),
    ("spice", "relevance file in the released layout"),
    (
      "captions",
      "captions for ROUGE-L: Karpathy's JSON (.json, .json.gz; its --split) or a JSON list of T "
      "strings",
    ),
    ("positives", "folder of ECCV Caption's JSON files; ids come from --captions"),
    ("sts", "CSV of rated caption pairs of Crisscrossed Captions; ids come from --captions"),
    ("train_image", "training features of the images, for cca"),
    ("train_text", "training features of the captions, for cca"),
    ("train_image_of_text", "the image of each training caption, for cca"),
    ("out", "folder for results.json; with several baselines one folder in it for each"),
  ):
    flags.DEFINE_string(name, None, text, flag_values=own)
  flags.DEFINE_string("split", "test", "split of --captions or --config", flag_values=own)
  flags.DEFINE_string("dataset", "", "name written into the results", flag_values=own)
  flags.DEFINE_string("kind", "cosine", "similarity: cosine, dot or order", flag_values=own)
  flags.DEFINE_integer(
    "folds", 1, "also average recall over so many equal parts; 5 is COCO's 1K", flag_values=own
  )
  flags.DEFINE_integer("k", 25, "length of a list in graded retrieval", flag_values=own)
  flags.DEFINE_float("alpha", 0.5, "of alpha-nDCG", flag_values=own)
  flags.DEFINE_string(
    "form", "released", "of graded retrieval: released or standard", flag_values=own
  )
  flags.DEFINE_string(
    "novelty", "corrected", "of graded retrieval: corrected or first", flag_values=own
  )
  flags.DEFINE_bool(
    "include_self", True, "i2i and t2t rank the query itself too (released)", flag_values=own
  )
  flags.DEFINE_list("baseline", [], "baselines to score: raw, cca", flag_values=own)
  flags.DEFINE_integer("cca_dim", 0, "directions that cca keeps; 0 is all", flag_values=own)
  flags.DEFINE_float("cca_regularization", 1.0, "of cca, in mean variances", flag_values=own)
  flags.DEFINE_float(
    "cca_power", 0.0, "of the correlations that weigh cca's directions", flag_values=own
  )
  flags.DEFINE_string("cache_dir", "~/.cache/xmr", "folder of relevance matrices", flag_values=own)
  config_flags.DEFINE_config_file("config", None, "config whose dataset is scored", flag_values=own)
  return own


def usage(own):
  """Returns the text of --help."""
  width = max(map(len, own)) + 2
  return __doc__ + "\n" + "\n".join(f"  --{name:{width}}{own[name].help}" for name in sorted(own))


def read_flags(own, argv):
  """Parses the command line into `own`; a mistake becomes a UserError."""
  command_line.read_flags(argv, values=own)
  if own.config is not None and "data" not in own.config:
    raise UserError("the config names no dataset (config.data)")
  unknown = [name for name in own.baseline if name not in BASELINES]
  if unknown:
    raise UserError(f"--baseline={unknown[0]} is unknown; expected {' or '.join(BASELINES)}")
  if own.config is None:
    missing = [
      f"--{name}" for name in ("image", "text", "image_of_text") if own[name].value is None
    ]
    if missing:
      raise UserError(
        f"{', '.join(missing)} missing; expected three .npy files, or --config with --baseline"
      )
  elif not own.baseline:
    raise UserError(
      f"--config needs --baseline={','.join(BASELINES)}; a trained run is scored by xmr.main "
      "--eval_only"
    )


def main(argv):
  """Runs one command line; returns nothing, raises SystemExit(2) for a user's mistake."""
  own = define()
  if command_line.asks_for_help(argv):
    print(usage(own))
    return
  with reported():
    read_flags(own, argv)
    command_line.keep_compiled(own.cache_dir)
    from xmr.eval import command

    options = own.flag_values_dict()
    for name, found in command.scored(options):
      if options["out"]:
        from xmr import files

        several = len(options["baseline"]) > 1
        folder = pathlib.Path(options["out"]) / (name if several else "")
        folder.mkdir(parents=True, exist_ok=True)
        files.write_json(folder / "results.json", found)
      print(command.shown(name, found), flush=True)


if __name__ == "__main__":
  main(sys.argv)
