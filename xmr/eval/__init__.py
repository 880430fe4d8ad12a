"""Evaluation of embeddings against ground truth: it never sees a model."""

from xmr.eval.average_precision import mean_average_precision
from xmr.eval.graded import graded
from xmr.eval.protocol import recall
from xmr.eval.ranks import ranks, similarity
from xmr.eval.top_k import top_k

__all__ = ["graded", "mean_average_precision", "ranks", "recall", "similarity", "top_k"]
