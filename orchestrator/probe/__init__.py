"""`potluck probe`: all boxes and their links measured from the head."""
