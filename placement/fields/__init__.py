"""Files that people write: their YAML, checked field by field, and what a value in them may be."""
