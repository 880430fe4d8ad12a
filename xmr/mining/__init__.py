"""Where negatives come from: the scopes, and the training set on the devices."""

from xmr.mining.scopes import check, make

__all__ = ["check", "make"]
