"""What a run is: its identity, its folder, its records."""
