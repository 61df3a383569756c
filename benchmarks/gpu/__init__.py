"""What is measured on a graphics card, table by table; `python -m benchmarks.hybrid` prints them."""
