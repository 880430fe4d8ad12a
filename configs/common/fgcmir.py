"""What the FG-CMIR configs share: data, optimiser, and the variants by name."""

from xmr.errors import UserError
from xmr.fine_grained.config import RELEASED, VARIANTS, base_config

SEEDS = (0, 1, 2, 3, 4)


def get_config(name, variant):
  """Returns the config of a dataset: "" or a key of VARIANTS, "table" for all of them with five
  seeds, or "released".

  Args:
    name: of the dataset.  variant: as above.
  """
  named = VARIANTS | {
    "": VARIANTS["fine_grained"],
    "table": VARIANTS["fine_grained"],
    "released": RELEASED,
  }
  if variant not in named:
    raise UserError(
      f"variant {variant!r} is unknown; expected one of {', '.join(v or '(none)' for v in named)}"
    )
  config = base_config()
  config.data.name = name
  config.data.dir = f"data/{name}"
  config.data.image = "features"
  config.data.image_features = "raw_features.mat"
  config.batch_size = 25600  # 160 texts with 160 images
  config.epochs = 0.0
  config.steps = 600
  config.evaluate.epochs = 0.0
  config.evaluate.steps = 100
  config.optimizer.learning_rate = 3e-3
  config.optimizer.schedule = "cosine"
  config.optimizer.l2 = 2e-4  # 5e-3 (yul_gcn)
  config.log.tensorboard = False
  config.update_from_flattened_dict(named[variant])
  if variant == "table":
    # Forty trainings: fewer words and dimensions, so that one CPU core does one in about half a
    # minute.
    config.graph.min_count = 30
    config.model.dim = 64
    config.table.variants = tuple(VARIANTS)
    config.table.seeds = SEEDS
  return config
