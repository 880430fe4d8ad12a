"""Makes a run folder of a released VSE++ or IMC checkpoint, which xmr.main --eval_only scores.

  python -m xmr.import_run --checkpoint=model_best.pth.tar --vocabulary=f30k_vocab.pkl \\
    --config=configs/vsepp_flickr.py --config.data.dir=DIR --workdir=runs/vsepp_released

The model's fields of the config are set to what the weights need, and the command that scores the
folder is printed.
--checkpoint is read with PyTorch's weights_only reader, --vocabulary (.json or .pkl) without
unpickling. To train on from these weights, give the folder as config.init of another run.
"""

import json
import pathlib
import sys

from absl import flags
from ml_collections import config_flags

from xmr import command_line
from xmr.errors import UserError, reported


def import_run(config, *, checkpoint, vocabulary, workdir):
  """Writes config.json, vocabulary.json, source.json and one checkpoint.

  Args:
    config: of a file in configs/; its fields for the model are changed to what the weights need.
    checkpoint: `model_best.pth.tar`.  vocabulary: .json or .pkl.  workdir: folder that does not
      hold a run yet.
  Returns:
    {"config.model.dim": 1024, ...}: the fields that were changed.
  Raises:
    UserError: unreadable or unfit files, or a folder in use; nothing is written.
  """
  import numpy as np

  from xmr import checkpoint as checkpoints_lib
  from xmr import config as config_lib
  from xmr.data import Vocabulary
  from xmr.files import new_folder, write_json
  from xmr.interop.vsepp import authors_variables

  workdir = pathlib.Path(workdir)
  if (workdir / "config.json").exists() or (workdir / "checkpoints").exists():
    raise UserError(f"{workdir} holds a run already; give another --workdir")
  variables, words, settings, report = authors_variables(checkpoint, vocabulary)
  words = json.loads(Vocabulary(words).to_json())
  before = config_lib.flat(config)
  config.update_from_flattened_dict(settings)
  config_lib.validate(config)
  flat = config_lib.flat(config)
  source = {"file": pathlib.Path(checkpoint).name, "sha256": report["sha256"]}
  step = int(report["step"] or 1)
  run = {
    "config": flat,
    "vocabulary": words,
    "best": {"score": report["rsum"], "step": step},
    "source": source,
  }
  state = {"step": np.int32(step), "batch_stats": variables.get("batch_stats", {})}
  with new_folder(workdir) as folder:
    for name, content in (("config", flat), ("vocabulary", words), ("source", source)):
      write_json(folder / f"{name}.json", content)
    saved = checkpoints_lib.Checkpoints(folder)
    saved.save(step, params=variables["params"], state=state, run=run, score=report["rsum"])
    saved.close()
  return {f"config.{key}": flat[key] for key in settings if flat[key] != before.get(key)}


def main(argv):
  """Runs one command line; returns nothing, raises SystemExit(2) for a user's mistake."""
  config = config_flags.DEFINE_config_file(
    "config", None, "File of a config, or file:variant.", lock_config=True
  )
  flags.DEFINE_string("checkpoint", None, "model_best.pth.tar as released.")
  flags.DEFINE_string("vocabulary", None, "Its vocabulary, .json or .pkl.")
  flags.DEFINE_string("workdir", None, "Folder to make.")
  if command_line.asks_for_help(argv):
    print(__doc__ + "\n" + flags.FLAGS.get_help(include_special_flags=False))
    return
  with reported():
    command_line.read_flags(
      argv,
      needed=("checkpoint", "vocabulary", "config", "workdir"),
      usage="python -m xmr.import_run --checkpoint= --vocabulary= --config= --workdir=",
    )
    values = flags.FLAGS
    changed = import_run(
      config.value,
      checkpoint=values.checkpoint,
      vocabulary=values.vocabulary,
      workdir=values.workdir,
    )
    given = [argument for argument in argv[1:] if argument.startswith("--config")]
    given += [f"--{key}={value}" for key, value in changed.items()]
    print(f"score it: python -m xmr.main {' '.join(given)} --workdir={values.workdir} --eval_only")


if __name__ == "__main__":
  main(sys.argv)
