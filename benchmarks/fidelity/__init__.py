"""Whether the simulator tells the truth: the real runtime in several layouts beside what probes predict."""
