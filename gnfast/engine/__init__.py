"""What users call: the critic's normalised value by four or six passes, the penalties, the module, and the oracle of all."""
