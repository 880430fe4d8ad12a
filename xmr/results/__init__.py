"""Records of runs and benches, and the tables and figures of the documentation made from them."""
