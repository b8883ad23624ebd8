"""What users call: the critic's normalised value by four passes, the penalties, the module, and the oracle of all."""
