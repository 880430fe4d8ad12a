"""Between a command and its user: plain output, the home folder, interrupts."""
