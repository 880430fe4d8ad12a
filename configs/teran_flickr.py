"""F-TERAN on Flickr30K: Full-HN on alignments of regions with words (Mallea et al., Discovery
Science 2023; Messina et al., TERAN, TOMM 2021).

  python -m xmr.main --config=configs/teran_flickr.py --config.data.dir=data/flickr30k
  --workdir=runs/teran_flickr

36 bottom-up regions of 2,048 numbers (Anderson et al. 2018; github.com/peteanderson80/
bottom-up-attention) as features/image_bottom_up.npy [31014, 36, 2048], rows by imgid; words from
GloVe through a transformer where TERAN has BERT; four layers a side and two that both share. No
results of F-TERAN are published. Ours were not run: these regions were not on the machine where
this was written.

Variants:
  f_hn             Full-HN on alignments, no positive is a negative (also without a variant)
  f_hn_released    the same as released: the positive can be the hardest negative, padding scores 0
  hn               hinges on the hardest negatives of the batch
  mh               hinges on the hardest negatives, MrSw: TERAN itself
  flickr8k_f_teran F-TERAN on 16 regions and the words of Flickr8k; minutes on two cores
  flickr8k_f_hn    Full-HN as on vectors there, on mean alignments
  flickr8k_hn      HN there, on mean alignments
  flickr8k_mh      MH there, on mean alignments
  flickr8k_pooled  MH on the means of the same tokens
"""

from configs.common import teran


def get_config(variant=""):
  """Returns the config of a variant, as listed above."""
  return teran.get_config(variant, dataset="flickr30k", variants=tuple(teran.FLICKR8K))
