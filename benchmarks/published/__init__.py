"""Published speeds, predicted: what classes reach is set on half of the devices and judged on the others."""
