"""The connectors beside TomeFormer and Q-Former."""
