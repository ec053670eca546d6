"""Stage 1 of BLIP-2: its three losses and the model that they train."""
