"""Surgeons that ship with the package, as safetensors with a record of their training and trials."""
