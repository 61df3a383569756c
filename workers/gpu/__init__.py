"""Cards that compute: NVIDIA's, through their driver, with kernels compiled where they run.

Nothing else imports the bindings, and nothing here is needed on a box without a card: `potluck-moe[cuda]`
installs what is. docs/gpu.md says what runs there and how it is tested.
"""
