"""Side-by-side benchmarks: every contender in a process of its own, rounds interleaved, shares of
the machine's limit.
"""
