"""The intra-modal constraint (IMC): a penalty on distances of mid-near items of one modality."""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Real

from xmr.errors import UserError, choice
from xmr.losses import shapes
from xmr.losses.shapes import Loss, Match
from xmr.losses.triplet import max_of_hinges, sum_of_hinges
from xmr.ops import band, cdist
from xmr.ops.arrays import Array
from xmr.ops.similarity import safe_sqrt

DISTANCES = ("l1", "l2", "msd", "cosine")
FORMS = ("released", "paper")
INTER = {"max_of_hinges": max_of_hinges, "sum_of_hinges": sum_of_hinges}


def imc(
  image: Real[Array, "B D"],
  text: Real[Array, "B D"],
  *,
  match: Match = None,
  margin: float = 0.2,
  weight: float = 1.0,
  distance: str = "l1",
  lower: float = 0.05,
  upper: float = 0.5,
  form: str = "released",
  reduce: str = "sum",
  inter: str = "max_of_hinges",
) -> Loss:
  """Hinge loss on the hardest negatives plus the intra-modal constraint on both modalities (IMC).

  inter(image, text) + weight (intra_modal_constraint(image) + intra_modal_constraint(text)).

  Args:
    image, text: unit rows; text i describes image i.
    match: True where text j describes image i (never a negative); None is the identity. The
      intra-modal terms look at all pairs, as released.
    margin: hinge margin in cosine units; 0.2 in the paper.  weight: lambda of the paper.
    distance, lower, upper, form: as in `intra_modal_constraint`.
    reduce: "sum" over queries (as released) or "mean", of the inter-modal part alone; the
      constraint is always divided by B.
    inter: "max_of_hinges" (paper) or "sum_of_hinges" (for a warm-up).
  Returns:
    (loss, terms): terms are those of `inter` ("i2t", "t2i", "active", ...), "inter": [] their sum,
      "intra_image", "intra_text": [] before the weight.
  Raises:
    ValueError: shapes differ; names both.  UserError: unknown distance, form, reduce or inter; bad
      bounds.
  References:
    Chen et al., ICIP 2022, eq. 3-8; the default is CanonChen/IMC as released with il_measure l1.
  """
  choice("inter", inter, tuple(INTER))
  loss, terms = INTER[inter](image, text, match=match, margin=margin, reduce=reduce)
  image, text = shapes.matrices(image=image, text=text)
  values = band.constraints(
    setting(distance, lower, upper, form), (image, text), jax.lax.stop_gradient(loss)
  )
  parts = dict(zip(("intra_image", "intra_text"), values, strict=True))
  return loss + weight * (parts["intra_image"] + parts["intra_text"]), terms | {
    "inter": loss
  } | parts


def intra_modal_constraint(
  x: Real[Array, "B D"],
  *,
  distance: str = "l1",
  lower: float = 0.05,
  upper: float = 0.5,
  form: str = "released",
) -> Float[jax.Array, ""]:
  """Mean over items of the sum of distances to the others that are neither very near nor very far.

  released, l1 l2 msd: 1/B sum_{n, m} Dh_nm [a < Dh_nm < b], Dh_nm = D_nm / max(|D_n:|_2, 1e-12).
    a = r[round(lower B)] and b = r[round(upper B)] of r, row 0 of Dh in ascending order (halves
    round to even; indices are at most B - 1). Row 0 of the global batch sets the thresholds of all
    rows. A step downhill PULLS mid-near items together.
  released, cosine: 1/B sum_{n != m} C_nm [upper < C_nm < 1 - lower] with C_nm = x_n.x_m. PUSHES.
  paper: 1/B sum_{n != m} D_nm [lower < D_nm < upper]. PULLS. (The printed eq. 4 has no 1/B; here it
    keeps `weight` comparable with the released form.)
  D is l1: sum_d |x_nd - x_md|; msd: sum_d (x_nd - x_md)^2; l2: its root (eq. 8 as printed equals
  l1); cosine: 1 - C. Bands and thresholds carry no gradient; that of a zero distance is 0.

  Args:
    x: one modality, unit rows (not normalised again).
    distance: "l1", "l2", "msd" or "cosine".
    lower, upper: mu_down and mu_up of the paper, 0 <= lower <= upper; shares of the batch for the
      released quantiles, units of the distance otherwise.
    form: "released" (the numbers of the paper) or "paper" (the equation).
  Raises:
    ValueError: x is not [B, D].  UserError: unknown distance or form, bounds out of order.
  References:
    Chen et al., ICIP 2022, eq. 4-8; CanonChen/IMC `IntraLoss`.
  """
  (x,) = shapes.matrices(x=x)
  return band.constraints(setting(distance, lower, upper, form), (x,), x[0, 0])[0]


def plain_constraint(
  x: Real[Array, "B D"],
  *,
  distance: str = "l1",
  lower: float = 0.05,
  upper: float = 0.5,
  form: str = "released",
) -> Float[jax.Array, ""]:
  """`intra_modal_constraint` as it reads, [B, D] -> []: memory B x B x D, differentiated by JAX.

  Training computes `xmr.ops.band.constraints`, which tests compare with this function.
  """
  measure, quantile, low, high = setting(distance, lower, upper, form)
  share = cdist.plain(measure, x)
  if quantile:
    share = share / jnp.maximum(safe_sqrt(jnp.sum(share**2, axis=1, keepdims=True)), band.EPSILON)
    ordered = jnp.sort(jax.lax.stop_gradient(share[0]))
    low, high = (ordered[min(round(bound * len(x)), len(x) - 1)] for bound in (low, high))
  inside = (low < share) & (share < high) & ~jnp.eye(len(x), dtype=bool)
  return jnp.sum(jnp.where(inside, share, 0)) / len(x)


def setting(distance: str, lower: float, upper: float, form: str) -> band.Setting:
  """Checks the four choices and returns them as a hashable `band.Setting`."""
  choice("distance", distance, DISTANCES)
  choice("form", form, FORMS)
  if not 0 <= lower <= upper or (form == "released" and upper > 1):
    raise UserError(
      f"lower is {lower} and upper is {upper}; expected 0 <= lower <= upper, at most 1 when "
      "released"
    )
  if form == "paper":
    return band.Setting(
      "cosine_distance" if distance == "cosine" else distance, False, float(lower), float(upper)
    )
  if distance == "cosine":
    return band.Setting("dot", False, float(upper), 1.0 - float(lower))
  return band.Setting(distance, True, float(lower), float(upper))
