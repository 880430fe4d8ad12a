"""What is written is whole or not there, and a folder belongs to one process."""
