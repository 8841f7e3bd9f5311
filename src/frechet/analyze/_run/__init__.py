"""A training run: what limits its learning rate, measured while it goes on."""
