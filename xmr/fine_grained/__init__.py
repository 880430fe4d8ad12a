"""FG-CMIR: a siamese text network labels pairs, and the labels weight them in the loss; the label
formula is a RECONSTRUCTION.
"""
