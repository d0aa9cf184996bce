"""What acquisition software calls on the rig; standard library only, for it runs inside other people's Python."""
