"""A cluster as its user sees it: its file, its boxes over ssh, its keys, what is wrong with a box."""
