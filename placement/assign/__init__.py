"""The choice among an expert's holders: for one step, and for thousands of steps at once."""
