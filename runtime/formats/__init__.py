"""What each file format needs to be a finished stack; `ssai3d_rt.runtime.complete` is the door to it."""
