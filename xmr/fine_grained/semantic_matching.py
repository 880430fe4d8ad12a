"""Semantic matching, the baseline of labelled sets: a classifier of categories per modality, whose
posteriors are compared.
"""

import numpy as np
from scipy import optimize, special

from xmr.eval.average_precision import mean_average_precision

STRENGTHS = tuple(10.0**k for k in range(-4, 1))


def logistic_regression(features, label, *, l2):
  """Multinomial logistic regression: minimises mean(-ln p(label)) + l2 / 2 |W|^2 by L-BFGS.

  Args:
    features: [N, F] float.  label: [N] int, 0 to C - 1.  l2: float; scikit-learn's C is 1 / (N l2).
  Returns:
    function of [M, F] -> [M, C] float64 posterior.
  """
  x, classes = np.asarray(features, np.float32), int(label.max()) + 1
  hot = np.eye(classes)[label]
  shape = (x.shape[1] + 1, classes)

  def objective(flat):
    w = flat.reshape(shape)
    logits = x @ w[:-1].astype(np.float32) + w[-1]
    excess = (special.softmax(logits, axis=1) - hot) / len(x)
    loss = -np.mean(special.log_softmax(logits, axis=1)[hot > 0]) + l2 / 2 * np.sum(w[:-1] ** 2)
    gradient = np.vstack([x.T @ excess.astype(np.float32) + l2 * w[:-1], excess.sum(axis=0)])
    return loss, gradient.ravel()

  best = optimize.minimize(
    objective, np.zeros(np.prod(shape)), jac=True, method="L-BFGS-B", options={"maxiter": 200}
  ).x
  w = best.reshape(shape)
  return lambda rows: special.softmax(rows @ w[:-1] + w[-1], axis=1)


def posteriors(image, text, label):
  """Posteriors on the test split of one classifier per modality.

  Each penalty is the one with the best accuracy on the validation part.

  Args:
    image, text: {"train", "val", "test": [N, F] float}, row i of both is pair i.
    label: {"train", "val", "test": [N] int}.
  Returns:
    {"image", "text": [N, C] float64} of the test split.
  """
  found = {}
  for name, features in (("image", image), ("text", text)):
    models = [logistic_regression(features["train"], label["train"], l2=l2) for l2 in STRENGTHS]
    scores = [np.mean(model(features["val"]).argmax(axis=1) == label["val"]) for model in models]
    found[name] = models[int(np.argmax(scores))](features["test"])
  return found


def semantic_matching(posterior, label):
  """MAP of two classifiers whose posteriors are compared by their dot product.

  Args:
    posterior: of `posteriors`.  label: [N] int, of the test split.
  Returns:
    {"i2t/map", "t2i/map", "map", "image_accuracy", "text_accuracy"}, in [0, 1].
  References:
    Rasiwasia et al., ACM MM 2010.
  """
  i2t = mean_average_precision(posterior["image"], posterior["text"], label, label, kind="dot")
  t2i = mean_average_precision(posterior["text"], posterior["image"], label, label, kind="dot")
  accuracy = {
    f"{name}_accuracy": float(np.mean(p.argmax(axis=1) == label)) for name, p in posterior.items()
  }
  return {"i2t/map": i2t, "t2i/map": t2i, "map": (i2t + t2i) / 2, **accuracy}
