"""What users call: the normalised critic by four or six passes, the penalties, the module, and the oracle of all."""
