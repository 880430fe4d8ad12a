"""Primitives that do not depend on losses or models: similarity, distances, recurrent layers,
tiles, memory.
"""
