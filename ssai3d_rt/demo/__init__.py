"""The demo: the whole job on one machine, and how near the result comes to the truth."""
