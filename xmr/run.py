"""What a command does with a config: train, score, draw, say where things lie."""

import jax

from xmr import train
from xmr.errors import UserError
from xmr.eval import protocol
from xmr.experiment import prepare
from xmr.inspect import plots
from xmr.run_folder import begun, imported


def run(config, workdir, *, eval_only=False):
  """Trains (or only scores) a run, prints its results and draws retrieved examples; process 0 alone
  speaks.

  Args:
    config: of a file in configs/.
    workdir: folder of the run.
    eval_only: True scores what is there.
  """
  if config.task == "fine_grained":
    from xmr.fine_grained import command

    command.train_and_evaluate(config, workdir, eval_only=eval_only)
    return
  if eval_only and not begun(workdir):
    raise UserError(f"--eval_only: {workdir} has no checkpoints; train first, without it")
  if not eval_only and imported(workdir):
    raise UserError(
      f"{workdir} was imported and has no optimiser to go on with; train on from it with "
      f"--config.init={workdir}"
    )
  experiment = prepare(config, workdir, eval_only=eval_only)
  if not eval_only and not train.train(experiment):
    return
  results, image, text = train.score(experiment)
  if jax.process_index():
    return
  print(protocol.table(results))
  made = ["results.json"]
  if config.picture:
    split = experiment.splits[config.evaluate.split]
    figure = plots.retrieved(image, text, split, kind=config.similarity, folder=config.data.dir)
    figure.savefig(experiment.workdir / "retrieved.png")
    made.append("retrieved.png")
  print("wrote " + ", ".join(str(experiment.workdir / name) for name in made))
  print(f"parameters: {experiment.workdir / 'checkpoints' / str(results['step'])}")
  if config.log.tensorboard:
    print(f"curves: tensorboard --logdir {experiment.workdir}/tensorboard")
  print(f"look inside: python -m xmr.inspect.report --workdir={experiment.workdir}")
