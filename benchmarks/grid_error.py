"""Error of a fixed-point sum of experts beside a float32 sum, both against float64.

    python -m benchmarks.grid_error

Random experts of Step-3.5's hidden size, top 8, outputs from a thousandth of the residual to its own size.
"""

from __future__ import annotations

import torch

from workers import fixed_point

TOKENS, HIDDEN, TOP_K = 64, 4096, 8


def main() -> None:
    """Print the largest and the root mean square error, in units of the residual's rms."""
    generator = torch.Generator().manual_seed(1)
    residual = torch.randn(TOKENS, HIDDEN, generator=generator)
    rms = residual.double().pow(2).mean(1, keepdim=True).sqrt()
    exponents = fixed_point.scale_exponents(residual)
    print("expert output / residual   grid: max, rms        float32 sum: max, rms")
    for scale in (1e-3, 1e-2, 1e-1, 1.0):
        outputs = torch.randn(TOP_K, TOKENS, HIDDEN, generator=generator) * scale
        exact = outputs.double().sum(0)
        steps = torch.round(torch.ldexp(outputs, -torch.from_numpy(exponents)[None, :, None])).to(torch.int32)
        grid = fixed_point.to_float32(steps.sum(0, dtype=torch.int32).numpy(), exponents)
        plain = torch.zeros_like(residual)
        for output in outputs:
            plain += output
        figures = []
        for found in (grid, plain):
            error = (found.double() - exact) / rms
            figures.append(f"{error.abs().max():.1e}, {error.pow(2).mean().sqrt():.1e}")
        print(f"{scale:>10g}                 {figures[0]}      {figures[1]}")


if __name__ == "__main__":
    main()
