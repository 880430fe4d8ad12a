"""The table of tasks: what `config.task` may be, and the module that runs each.

A task's module offers `train_and_evaluate(config, workdir, *, eval_only, stop)`, which trains its
stages with `train.fit` and scores what came out; `base_config()`, with the task's own fields;
`validate(config)`; and `Run`, the class of a run as xmr.inspect shows it.
"""

import importlib

TASKS = {
  "retrieval": "xmr.retrieval",  # one dual encoder of images and texts
  "fine_grained": "xmr.fine_grained.task",  # the two stages of FG-CMIR
}
# The fields of a config that a task has of its own, {name: Field}; nothing is imported for them
# that a config does without.
FIELDS = {"fine_grained": "xmr.fine_grained.config.FIELDS"}


def module(name):
  """Returns the module of a task, by its name in the table."""
  return importlib.import_module(TASKS[name])
