"""FG-CMIR: labels from a siamese text network, and pairs weighted by them; the label formula is a
RECONSTRUCTION.
"""
