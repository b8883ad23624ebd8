"""What a training run is: its settings, and the ones that are worth a name."""
