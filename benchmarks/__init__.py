"""How fast the connectors are: see README.md here."""
