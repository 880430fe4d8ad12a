"""Primitives that know no loss and no model: similarity, distances, recurrent layers, tiles,
memory.
"""
