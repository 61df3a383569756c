"""Memory of the machine: what is free, what a run needs, and files mapped into it. Loads no torch."""
