"""VSE++ on Flickr30K, the maintainer's exact settings (Faghri et al., BMVC 2018; vsepp issue 41).

  python -m xmr.main --config=configs/vsepp_flickr.py --config.data.dir=data/flickr30k
  --workdir=runs/vsepp

ResNet-152, frozen, its BatchNorm statistics drifting; GRU(1024) on words from U(-0.1, 0.1), no
dropout, vocabulary of all splits, two captions of one image as each other's negatives, no warm-up:
all as released.

  result                    i2t R@1/5/10         t2i R@1/5/10         rsum
  maintainer's rerun        43.8 / 72.4 / 81.8   31.6 / 59.6 / 69.7   358.9
  fine-tuned (`:finetuned`) 52.9 / 80.5 / 87.2   39.6 / 70.1 / 79.5   409.8
  ours                      not run: no photographs, weights or GPU on the machine where this was
  written

Variants:
  finetuned   15 more epochs at 2e-5 with the CNN; --config.init=runs/vsepp
"""

from configs.common import flickr


def get_config(variant=""):
  """Returns the config of a variant: "" or "finetuned"."""
  config = flickr.get_config(
    "max_of_hinges", "" if variant == "finetuned" else "frozen" if not variant else variant
  )
  config.vocabulary.glove = ""
  config.vocabulary.splits = "all"
  config.match = "pair"
  config.model.text.name = "gru"
  config.model.text.dropout = 0.0
  config.model.text.word_init = "uniform"
  if variant == "finetuned":
    config.init = "runs/vsepp"
    config.epochs = 15.0
    config.optimizer.learning_rate = 2e-5
    config.optimizer.schedule = "constant"
  return config
