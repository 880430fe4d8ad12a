"""What a config takes on machines that are not there: memory, traffic and a bound on its time."""
