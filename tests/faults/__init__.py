"""The fault suite: the daemon against everything that a rig, its disks and its power supply can do to it.

Run it with `make faults` or `make faults-quick`; it is not part of the tests. A drill is a function, see `drill`.
"""
