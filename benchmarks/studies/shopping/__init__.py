"""What people ask before they buy, answered by the planner: `python -m benchmarks.studies.shopping`."""
