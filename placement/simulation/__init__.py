"""The parts of the simulator: passes, devices and links, queues and counts (docs/simulator.md)."""
