"""Many runs of one config and the table that compares them."""
