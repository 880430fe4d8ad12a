"""Makes a run folder of somebody else's weights, which xmr.main --eval_only scores.

  python -m xmr.import_run --pretrained=FOLDER --workdir=runs/clip
  python -m xmr.import_run --checkpoint=model_best.pth.tar --vocabulary=f30k_vocab.pkl \\
    --config=configs/vsepp_flickr.py --config.data.dir=DIR --workdir=runs/vsepp_released

--pretrained is a folder of CLIP or SigLIP as Hugging Face or open_clip write it: weights,
config.json or open_clip_config.json, tokenizer.json, preprocessor_config.json; docs/pretrained.md.
--checkpoint is a released VSE++ or IMC checkpoint, read with PyTorch's weights_only reader, and
--vocabulary (.json or .pkl) its vocabulary, read without unpickling; the model's fields of the
config are set to what the weights need. Either way the command that scores the folder is printed.
To train on from these weights, give the folder as config.init of another run.
"""

import json
import pathlib
import shlex
import sys

from absl import flags, logging
from ml_collections import config_flags

from xmr import command_line
from xmr.errors import UserError, reported


def write_run(config, workdir, *, variables, vocabulary, settings, source, step=1, score=None):
  """Writes a run folder of imported values: config.json, vocabulary.json, source.json and a
  checkpoint.

  Args:
    config: ConfigDict.  workdir: folder that does not hold a run yet.
    variables: {"params": ..., "batch_stats": ... where there are any}, NumPy.
    vocabulary: content of vocabulary.json.
    settings: {"model.dim": 1024, ...}: fields of the config that the values need.
    source: what source.json says.  step, score: of the checkpoint.
  Returns:
    the config's fields, flat.
  """
  import numpy as np

  from xmr import checkpoint as checkpoints_lib
  from xmr import config as config_lib
  from xmr.storage.files import new_folder, write_json

  config.update_from_flattened_dict(settings)
  config_lib.validate(config)
  flat = config_lib.flat(config)
  run = {
    "config": flat,
    "vocabulary": vocabulary,
    "best": {"score": score, "step": step},
    "source": source,
  }
  state = {"step": np.int32(step), "batch_stats": variables.get("batch_stats", {})}
  with new_folder(workdir) as folder:
    for name, content in (("config", flat), ("vocabulary", vocabulary), ("source", source)):
      write_json(folder / f"{name}.json", content)
    saved = checkpoints_lib.Checkpoints(folder)
    saved.save(step, params=variables["params"], state=state, run=run, score=score)
    saved.close()
  return flat


def check_free(workdir):
  """Returns the path of a folder to make; UserError where it holds a run."""
  workdir = pathlib.Path(workdir)
  if (workdir / "config.json").exists() or (workdir / "checkpoints").exists():
    raise UserError(f"{workdir} holds a run already; give another --workdir")
  return workdir


def import_run(config, *, checkpoint, vocabulary, workdir):
  """Makes a run folder of a released VSE++ or IMC checkpoint.

  Args:
    config: of a file in configs/; its fields for the model are changed to what the weights need.
    checkpoint: `model_best.pth.tar`.  vocabulary: .json or .pkl.  workdir: folder that does not
      hold a run yet.
  Returns:
    {"config.model.dim": 1024, ...}: the fields that were changed.
  Raises:
    UserError: unreadable or unfit files, or a folder in use; nothing is written.
  """
  from xmr import config as config_lib
  from xmr.data import Vocabulary
  from xmr.interop.vsepp import authors_variables

  workdir = check_free(workdir)
  variables, words, settings, report = authors_variables(checkpoint, vocabulary)
  before = config_lib.flat(config)
  flat = write_run(
    config,
    workdir,
    variables=variables,
    vocabulary=json.loads(Vocabulary(words).to_json()),
    settings=settings,
    source={"file": pathlib.Path(checkpoint).name, "sha256": report["sha256"]},
    step=int(report["step"] or 1),
    score=report["rsum"],
  )
  return {f"config.{key}": flat[key] for key in settings if flat[key] != before.get(key)}


def import_pretrained(config, *, folder, workdir):
  """Makes a run folder of pretrained towers.

  source.json says which fields of a config the weights need; recipe "imported" reads them there.

  Args:
    config: ConfigDict; its model, image size and tokenizer become those of the weights.
    folder: Hugging Face or open_clip folder.  workdir: folder that does not hold a run yet.
  Returns:
    Towers.
  Raises:
    UserError: unreadable or unfit files, or a folder in use; nothing is written.
  """
  from xmr.interop import pretrained

  workdir = check_free(workdir)
  towers = pretrained.load(folder)
  settings = pretrained.settings(towers)
  learned = {"temperature": towers.temperature, "bias": towers.bias}
  write_run(
    config,
    workdir,
    variables={"params": towers.params},
    vocabulary=towers.tokenizer,
    settings=settings,
    source=pretrained.source(towers) | {"settings": settings, "loss": learned},
  )
  return towers


def main(argv):
  """Runs one command line; returns nothing, raises SystemExit(2) for a user's mistake."""
  config = config_flags.DEFINE_config_file(
    "config", None, "File of a config, or file:variant.", lock_config=True
  )
  flags.DEFINE_string("pretrained", None, "Hugging Face or open_clip folder.")
  flags.DEFINE_string("checkpoint", None, "model_best.pth.tar as released.")
  flags.DEFINE_string("vocabulary", None, "Its vocabulary, .json or .pkl.")
  flags.DEFINE_string("workdir", None, "Folder to make.")
  if command_line.asks_for_help(argv):
    print(f"{__doc__}\n" + flags.FLAGS.get_help(include_special_flags=False))
    return
  with reported():
    usage = (
      "python -m xmr.import_run --pretrained= --workdir=, or --checkpoint= --vocabulary= --config= "
      "--workdir="
    )
    command_line.read_flags(argv, needed=("workdir",), usage=usage)
    values = flags.FLAGS
    logging.set_verbosity(logging.ERROR)
    if values.pretrained:
      for name in ("checkpoint", "vocabulary"):
        if values[name].value:
          raise UserError(f"--pretrained and --{name}: expected one of them")
      from xmr.config import base_config

      made = import_pretrained(
        config.value or base_config(), folder=values.pretrained, workdir=values.workdir
      )
      print(f"{values.workdir}: {made.kind} of {made.source}")
      command = f"--workdir={values.workdir} --eval_only --config.data.dir=DIR"
      for variant, what in (("", "Flickr30K"), (":own", "your pictures")):
        print(
          f"on {what}: python -m xmr.main --config=configs/pretrained_flickr.py{variant} {command}"
        )
      return
    for name in ("checkpoint", "vocabulary", "config"):
      if values[name].value in (None, ""):
        raise UserError(f"--{name} is missing: {usage}")
    changed = import_run(
      config.value,
      checkpoint=values.checkpoint,
      vocabulary=values.vocabulary,
      workdir=values.workdir,
    )
    given = [argument for argument in argv[1:] if argument.startswith("--config")]
    given += [f"--{key}={value}" for key, value in changed.items()]
    given += [f"--workdir={values.workdir}", "--eval_only"]
    print(f"score it: python -m xmr.main {shlex.join(given)}")


if __name__ == "__main__":
  main(sys.argv)
