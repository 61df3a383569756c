"""How worker processes come to run: on this machine, or through Ray on others."""
