"""IMC on rendered scenes, pixels and words from scratch: the main job without a download, minutes
on two CPU cores.

python -m xmr.main --config=configs/imc_scenes.py --workdir=runs/scenes
"""

from xmr.config import base_config


def get_config():
  """Returns the config."""
  config = base_config()
  config.data.name = "scenes"
  config.data.image_size = 64
  config.data.resize = 64
  # Small crops would cut off what the captions speak of.
  config.data.min_area = 0.6
  config.model.dim = 128
  config.model.image.name = "convnet"
  config.model.text.word_dim = 64
  config.model.text.dropout = 0.0
  config.model.text.readout = "ends"
  config.warmup.epochs = 6.0
  config.epochs = 10.0
  config.optimizer.learning_rate = 1e-3
  config.optimizer.schedule = "cosine"
  return config
