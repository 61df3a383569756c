"""The head on a card: its kernels, with the bits of `orchestrator.kernels`.

Every function launches on a stream and returns at once. Arrays are addresses in the card's memory; 0 is none.
What changes between decode steps (positions, page tables, rows) is read from that memory, so that a captured
graph serves every step with as many rows. docs/gpu.md says how each kernel works.
"""
