"""What a box can do, measured on the box itself: `python -m workers.probe` prints it as JSON."""
