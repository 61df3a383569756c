"""Times that no placement can beat (docs/bounds.md)."""
