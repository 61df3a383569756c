"""A program that does nothing, for 10 minutes."""

import time

if __name__ == "__main__":
    time.sleep(600)
