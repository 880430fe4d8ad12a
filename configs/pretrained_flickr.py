"""Pretrained CLIP or SigLIP on Flickr30K, Flickr8K, COCO or your own pairs: zero-shot, fine-tuned.

  python -m xmr.import_run --pretrained=FOLDER --workdir=runs/clip
  python -m xmr.main --config=configs/pretrained_flickr.py --config.data.dir=data/flickr30k
  --workdir=runs/clip --eval_only

FOLDER is what Hugging Face or open_clip calls a model: weights, config, tokenizer, preprocessor.
Encoders, image size and tokenizer are those of runs/clip; config.data.prompt="a photo of {}" puts
words around each caption. To fine-tune, give another --workdir and --config.init=runs/clip; what
to train is in docs/pretrained.md.

Zero-shot R@1/5/10 as open_clip's authors publish it (docs/openclip_retrieval_results.csv):

  Flickr30K, 1,000 test images       i2t                   t2i
  CLIP ViT-B/32 (OpenAI)             78.9 / 94.9 / 98.2    58.8 / 83.6 / 90.0
  CLIP ViT-B/16 (OpenAI)             82.2 / 96.6 / 99.0    62.2 / 85.7 / 91.9
  CLIP ViT-L/14 (OpenAI)             85.2 / 97.4 / 99.2    65.0 / 87.2 / 92.0
  SigLIP B/16, 224 pixels (WebLI)    89.1 / 98.0 / 99.3    74.7 / 92.3 / 95.6
  ours                               weights not at hand here

  COCO, 5,000 test images            i2t                   t2i
  CLIP ViT-B/32 (OpenAI)             50.1 / 75.0 / 83.5    30.4 / 55.9 / 66.9
  CLIP ViT-B/16 (OpenAI)             52.4 / 76.7 / 84.6    33.1 / 58.4 / 69.0
  CLIP ViT-L/14 (OpenAI)             56.3 / 79.4 / 86.6    36.5 / 61.1 / 71.1
  SigLIP B/16, 224 pixels (WebLI)    65.7 / 85.4 / 91.3    47.8 / 72.4 / 81.0
  ours                               weights not at hand here

Variants:
  flickr8k    1,000 test images
  coco        5,000 test images and the mean of five folds of 1,000
  own         a folder of your own, see configs/own.py
"""

from xmr.config import base_config
from xmr.errors import choice

DATA = {"": "flickr30k", "flickr8k": "flickr8k", "coco": "coco", "own": "own"}


def get_config(variant=""):
  """Returns the config of a variant: "" (Flickr30K), "flickr8k", "coco" or "own"."""
  choice("variant", variant, DATA)
  config = base_config()
  config.recipe = "imported"
  # SigLIP's take their place where the imported weights are SigLIP's.
  config.model.image.name = "clip_vit"
  config.model.text.name = "clip_text"
  config.data.name = DATA[variant]
  config.data.image_size = 0
  config.data.resize = 0
  # Captions speak of the whole image: small crops would cut off what they name.
  config.data.min_area = 0.5
  if variant == "coco":
    config.evaluate.folds = 5
  config.loss.name = "info_nce"
  config.optimizer.name = "adam"
  config.optimizer.b2 = 0.98
  config.optimizer.learning_rate = 1e-5
  config.optimizer.schedule = "cosine"
  config.optimizer.weight_decay = 0.1
  config.optimizer.clip = 1.0
  config.epochs = 5.0
  config.warmup.epochs = 0.0
  return config
