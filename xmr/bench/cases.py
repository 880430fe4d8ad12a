"""What a bench says of itself: cases, who computes them, the work that they hold, and the goals."""

import dataclasses

OURS = "xmr"


@dataclasses.dataclass(frozen=True)
class Goal:
  """A bound on one figure of a case.

  figure: "ratio/NAME" (time of that contender over ours), "ratio/best" (of the fastest contender),
    "share" (of the limit), "seconds", "rate" (items per second), "extra_mb" (memory beyond that of
    the resting process), or "facts/NAME" (something our contender says of itself).
  at_least, at_most: one of them is given.
  """

  figure: str
  at_least: float | None = None
  at_most: float | None = None

  def met(self, value):
    """Says whether a value keeps the bound."""
    return value >= self.at_least if self.at_most is None else value <= self.at_most

  @property
  def text(self):
    """The goal in words."""
    return f"{self.figure} {'>=' if self.at_most is None else '<='} {self.bound:g}"

  @property
  def bound(self):
    """The one bound that is given."""
    return self.at_least if self.at_most is None else self.at_most


@dataclasses.dataclass(frozen=True)
class Case:
  """One thing to compute, by several contenders.

  name: what and how large.
  contenders: {name: "module:function"}; ours is `OURS`. The function gets `arguments` and returns a
  dict of "run", a
    function that computes once and waits for the result (a float that it returns is the time that
    counts); "answer" (optional), a function that returns numbers in which contenders must agree;
    "facts" (optional), a dict of figures.
  arguments: what JSON can hold.
  products: floating point operations of the matrix products that the case cannot do without.
  traffic: bytes read and written that it cannot do without. The limit is products / (rate of the
  GEMM probe) + traffic /
    (rate of the copy probe), with the rates of the same round.
  part: {contender: share of the work that it does}; its time is divided by that.
  items: how many of `unit` one computation makes.
  tolerance: of the answers, relative to the largest.
  """

  name: str
  contenders: dict
  arguments: dict
  products: float = 0.0
  traffic: float = 0.0
  part: dict = dataclasses.field(default_factory=dict)
  items: float = 0.0
  unit: str = ""
  tolerance: float = 1e-3
  goals: tuple = ()
