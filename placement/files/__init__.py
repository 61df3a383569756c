"""Files that users give us, read within bounds, and results written whole or not at all."""
