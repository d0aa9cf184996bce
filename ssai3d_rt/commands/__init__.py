"""The commands of `ssai3d-rt`, grouped by who uses them; each imports the stage it needs when it runs."""
