"""Scores embeddings of any model, and baselines without training, by one protocol.

  python -m xmr.eval --image=I.npy --text=T.npy --image_of_text=M.npy [--captions=dataset.json]
  [--out=DIR]
  python -m xmr.eval --config=configs/NAME.py:VARIANT --baseline=raw,cca [--out=DIR]

I.npy is [N, D], T.npy [T, D] and M.npy [T] int: the image (row of I.npy) of each caption. Recall,
median and mean rank are always scored; graded retrieval in four tasks and order consistency with
--captions (ROUGE-L), --spice or --relevance; extra positives and human judgements with --positives
and --sts. Each metric is a row of xmr/eval/table.py, and a run scores the same by the field
config.evaluate.NAME. --baseline takes --image and --text for features: raw scores them as they are,
cca after a linear CCA fitted on --train_image, --train_text and --train_image_of_text. With
--config, features, captions and ids come from the dataset of that config (--config.data.dir=DIR).
"""

import os
import pathlib
import sys

from absl import flags
from ml_collections import config_flags

from xmr import command_line
from xmr.errors import UserError, reported
from xmr.eval import table
from xmr.fields import field

BASELINES = ("raw", "cca")

# What is read and written; the options of the metrics are those of `table`.
FILES = {
  "image": "[N, D] .npy, embeddings of the images",
  "text": "[T, D] .npy, embeddings of the captions",
  "image_of_text": "[T] .npy, integers: the row of --image that each caption describes",
  "captions": "captions for ROUGE-L, in the order of --text: Karpathy's JSON (.json, .json.gz; its "
  "--split) or a JSON list of T strings",
  "label": "[N] .npy, integers: the category of each image",
  "train_image": "training features of the images, for cca",
  "train_text": "training features of the captions, for cca",
  "train_image_of_text": "the image of each training caption, for cca",
  "out": "folder for results.json; with several baselines one folder in it for each",
}
SETTINGS = {
  "split": field("test", "split of --captions or --config"),
  "dataset": field("", "name written into the results"),
  "kind": field("cosine", "similarity", choices=table.KINDS),
  "cca_dim": field(0, "directions that cca keeps; 0: all", at_least=0, at_most=2**31 - 1),
  "cca_regularization": field(1.0, "of cca, in mean variances", above=0, at_most=1e9),
  "cca_power": field(
    0.0, "of the correlations that weigh cca's directions", at_least=-100, at_most=100
  ),
  "cache_dir": field("~/.cache/xmr", "folder of relevance matrices"),
}
KINDS_OF_FLAG = {
  bool: flags.DEFINE_bool,
  int: flags.DEFINE_integer,
  float: flags.DEFINE_float,
  str: flags.DEFINE_string,
}


def settings():
  """Returns {flag: Field} of all flags that are no files."""
  return SETTINGS | table.options()


def define():
  """Returns the flags of this command, in a set of their own."""
  own = flags.FlagValues()
  for name, text in FILES.items():
    flags.DEFINE_string(name, None, text, flag_values=own)
  switches = {name for row in table.EVALUATORS.values() for name in row.needs}
  for name, each in settings().items():
    about = each.about + (f": {each.allowed}" if each.allowed else "")
    default = each.default
    if name in switches and default is False:
      default, about = None, about + " (default: on with captions or relevance)"
    KINDS_OF_FLAG[type(each.default)](name, default, about, flag_values=own)
  flags.DEFINE_list("baseline", [], "baselines to score: raw, cca", flag_values=own)
  config_flags.DEFINE_config_file("config", None, "config whose dataset is scored", flag_values=own)
  return own


def usage(own):
  """Returns the text of --help."""
  width = max(map(len, own)) + 2
  lines = (f"  --{name:{width}}{own[name].help}" for name in sorted(own))
  return "\n".join([__doc__ or "", *lines])


def read_flags(own, argv):
  """Parses the command line into `own`; a mistake becomes a UserError."""
  command_line.read_flags(argv, values=own)
  for name, each in settings().items():
    if own[name].value is not None:
      each.check(f"--{name}", own[name].value)
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


def check_out(out):
  """Raises UserError where a folder for results cannot be: now, not when all is scored."""
  folder = pathlib.Path(out)
  for place in (folder, *folder.parents):
    if place.is_dir():
      if not os.access(place, os.W_OK):
        raise UserError(f"--out: cannot write into {place}")
      return
    if os.path.lexists(place):
      raise UserError(f"--out: {place} is no folder; expected one, or a name that is free")


def write(out, found):
  """Writes results.json into a folder; UserError where the folder takes nothing."""
  from xmr.storage import digests, files

  folder = pathlib.Path(out)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / "results.json", digests.sealed(found))
  except OSError as error:
    raise UserError(f"--out: cannot write {folder}/results.json: {error.strerror}") from None


def main(argv):
  """Runs one command line; returns nothing, raises SystemExit(2) for a user's mistake."""
  own = define()
  if command_line.asks_for_help(argv):
    print(usage(own))
    return
  with reported():
    read_flags(own, argv)
    options = own.flag_values_dict()
    if options["out"]:
      check_out(options["out"])
    command_line.keep_compiled(own.cache_dir)
    from xmr.eval import command

    for name, found in command.scored(options):
      if options["out"]:
        write(os.path.join(options["out"], name if len(options["baseline"]) > 1 else ""), found)
      print(command.shown(name, found), flush=True)


if __name__ == "__main__":
  main(sys.argv)
